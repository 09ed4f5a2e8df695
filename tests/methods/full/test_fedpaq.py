"""FedPAQ and QSGD against their cards: plain steps, differences of a few levels, and the mean of what arrives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import Case, factors_and_head
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.method import Method
from weft.methods import QSGD, FedIT, FedPAQ

TUNE = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = FedPAQ(tune=TUNE, steps=3, batch=2)
CODEC = FedPAQ.info.codec


def federation(method: Method, codec: str, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", codec_name=codec, **{"sizes": (6, 5, 7), "rounds": 2} | settings)


def test_without_a_quantiser_it_is_federated_averaging_of_as_many_steps() -> None:
    plain = FedIT(rank=2, alpha=2.0, sites="q,ffn.in", weighting="uniform", steps=3, batch=2, optim=SMALL.optim)
    found, wanted = (by_hand.shared(federation(m, "identity").run()) for m in (SMALL, plain))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())


@pytest.mark.parametrize("codec", ["identity", CODEC])
def test_two_rounds_are_means_of_quantised_differences(codec: str) -> None:
    """Plain SGD by hand gives x_i; what arrives is next to it by a level of its bucket, and the server has the mean of that."""
    run = federation(SMALL, codec)
    sent = by_hand.record(run)
    for t, present in enumerate(([0, 1, 2], [0, 2])):
        x = by_hand.shared(run)
        ends = [by_hand.train(run, x, by_hand.steps_of(run, k, t), lambda p: torch.optim.SGD(p, 0.1), scale=1.0) for k in present]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in present]: c)
            run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            arrived = []
            for update, end in zip(sent[t], ends, strict=True):
                got = update.tensors[name]
                assert isinstance(got, Tensor)
                arrived.append(got)
                if codec == "identity":
                    by_hand.close(got, end[name], 1e-12)
                    continue
                moved, quantised = ((v - x[name]).flatten() for v in (end[name], got))
                for at in range(0, len(moved), 512):
                    some, level = moved[at : at + 512], quantised[at : at + 512]
                    step = float(some.abs().max()) / 5
                    assert float((some - level).abs().max()) <= step * (1 + 1e-6)
                    if step:
                        counts = level / step
                        by_hand.close(counts, counts.round(), 1e-5)
            by_hand.close(value, torch.stack(arrived).mean(0), 1e-12)


@pytest.mark.parametrize(("method", "levels"), [(SMALL, 5), (QSGD(tune=TUNE, batch=2), 7)])
def test_bytes_are_those_of_the_cards(method: Method, levels: int) -> None:
    run = federation(method, method.info.codec, rounds=1)
    sent = by_hand.record(run)
    run.run()
    bits = 1 + math.ceil(math.log2(levels + 1))
    sizes = [v.numel() for u in sent[0] for v in u.tensors.values() if isinstance(v, Tensor)]
    wanted = sum(-(-n * bits // 8) + 4 * -(-n // 512) for n in sizes)
    assert run.simulation.setup.exchange.ledger.totals(direction="up").payload == wanted


def test_defaults_are_those_of_the_card() -> None:
    method = FedPAQ()
    assert (method.steps, method.weighting) == (10, "uniform")
    assert method.optim == Optim("sgd", lr=0.1, schedule="constant")
    assert CODEC == "qsgd:levels=5,bucket=512"
    run = federation(replace(method, tune=TUNE), "identity", rounds=1)
    assert [len(by_hand.steps_of(run, k, 0)) for k in range(3)] == [10, 10, 10]


def test_qsgd_is_one_step_a_round() -> None:
    method = QSGD(tune=TUNE, batch=2)
    run = federation(method, "identity", rounds=1)
    assert [len(by_hand.steps_of(run, k, 0)) for k in range(3)] == [1, 1, 1]
    same = federation(replace(SMALL, steps=1), "identity", rounds=1)
    found, wanted = by_hand.shared(run.run()), by_hand.shared(same.run())
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())
    assert (method.weighting, method.optim) == ("uniform", Optim("sgd", lr=0.1, schedule="constant"))


def test_an_experiment_takes_the_methods_codec_unless_another_is_asked_for() -> None:
    assert resolve({"method": "fedpaq"}).experiment.codec == CODEC
    assert resolve({"method": "qsgd"}).experiment.codec == "qsgd:levels=7,bucket=512"
    assert resolve({"method": "qsgd", "codec": "quant8"}).experiment.codec == "quant8"
    assert resolve({"method": "qsgd", "codec": "identity"}).experiment.codec == "identity"
    assert resolve({"method": "fedit"}).experiment.codec == "identity"
    assert resolve({}, None, FedPAQ(steps=2)).experiment.codec == CODEC
    with pytest.raises(UserError, match="fedpaq needs a codec that is right on average, and sign is not"):
        resolve({"method": "fedpaq", "codec": "sign"})


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, factors_and_head)
