"""DIANA against its card: differences to a shift on both ends, the mean over those who are away too, and a floor that is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import Case, factors_and_head
from quadratics import BEST, STEPS, Quadratic, found, off
from weft.contract import MethodInfo, Optim, Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.method import Method
from weft.methods import DIANA
from weft.testing import laws
from weft.testing.compare import client_state

TUNE = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = DIANA(tune=TUNE, batch=2)
SHARE = 0.5
RANDK = f"shift+randk:share={SHARE}"
COHORTS = ([0, 1, 2, 3], [0, 2], [1, 2, 3], [0, 2], [1, 3])

test_laws = laws.over(DIANA(tune=Tune("bottleneck", reduction=8)), DIANA(weighting="examples", steps=2))


def federation(method: Method, codec: str, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", codec_name=codec, **{"sizes": (6, 5, 7, 3), "rounds": len(COHORTS)} | settings)


def play(run: tiny.Federation, t: int, present: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.engines.engine.cohort", lambda *_: [run.clients[k] for k in present])
        run.simulation.round(t)


def own_shifts(run: tiny.Federation, k: int) -> dict[str, Tensor]:
    before = f"client-{k}:memo shift/now/"
    return {n.removeprefix(before): v for n, v in client_state(run).items() if n.startswith(before)}


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_rounds_of_some_of_the_clients_are_the_algorithm_box(weighting: Any) -> None:
    """By hand in float64: which entries were drawn is read off what arrives, all else follows from the gradients."""
    run = federation(replace(SMALL, weighting=weighting), RANDK)
    sent = by_hand.record(run)
    weights = [1.0] * 4 if weighting == "uniform" else [float(c.n) for c in run.clients]
    x = by_hand.shared(run)
    alpha = {n: 1 / (v.numel() / max(round(SHARE * v.numel()), 1)) for n, v in x.items()}  # 1 + ω = n / k
    h = {n: torch.zeros(4, *v.shape, dtype=v.dtype) for n, v in x.items()}
    drawn = 0
    for t, present in enumerate(COHORTS):
        ends = [by_hand.train(run, x, by_hand.steps_of(run, k, t), lambda p: torch.optim.SGD(p, 0.1), scale=1.0) for k in present]
        play(run, t, present)
        after = by_hand.shared(run)
        for n in x:
            mean = sum(w * v for w, v in zip(weights, h[n], strict=True)) / sum(weights)
            gain, of_cohort = torch.zeros_like(x[n]), sum(weights[k] for k in present)
            for update, k, end in zip(sent[t], present, ends, strict=True):
                apart = end[n] - x[n] - h[n][k]
                arrived = update.tensors[n]
                assert isinstance(arrived, Tensor)
                m = torch.where(arrived - x[n] - h[n][k] != 0, arrived - x[n] - h[n][k], 0.0)
                places = m.abs() > 1e-15
                drawn += int(places.sum())
                by_hand.close(m, torch.where(places, apart / alpha[n], 0.0), 1e-12)
                assert int(places.sum()) <= max(round(SHARE * m.numel()), 1)
                gain += weights[k] * m / of_cohort
                h[n][k] += alpha[n] * m
            by_hand.close(after[n], x[n] + mean + gain, 1e-12)
            for k in range(4):
                noted = run.server.notes.get(f"client-{k}").get(f"shift/{n}", torch.zeros_like(x[n]))
                assert torch.equal(own_shifts(run, k).get(n, torch.zeros_like(x[n])), noted)
                by_hand.close(noted, h[n][k], 1e-12)
            total = run.server.memo.get(f"shift/{n}", torch.zeros_like(x[n]))
            by_hand.close(total, sum(w * v for w, v in zip(weights, h[n], strict=True)), 1e-12)
        x = after
    assert drawn > 1000


def test_a_client_that_has_lost_its_shifts_takes_them_out_of_the_mean_of_all() -> None:
    run = federation(SMALL, RANDK)
    for t in range(2):
        play(run, t, [0, 1, 2, 3])
    store, (client, *_) = run.simulation.setup.store, run.clients
    store.load(client)
    client.memo = {"nothing": 0}
    store.save(client)
    play(run, 2, [0, 1, 2, 3])
    for name, total in run.server.memo.items():
        parts = [run.server.notes.get(c.id)[name] for c in run.clients]
        by_hand.close(total, torch.stack(parts).sum(0), 1e-12)
        assert torch.equal(parts[0], own_shifts(run, 0)[name.removeprefix("shift/")])


def test_without_a_codec_it_is_the_gradient_descent_of_all_from_the_first_round() -> None:
    """C = identity: ω = 0 and α = 1."""
    found = by_hand.shared(federation(SMALL, "shift+topk:share=1.0").run())
    wanted = by_hand.shared(federation(SMALL, "identity").run())
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        by_hand.close(value, wanted[name], 1e-12)


# quadratics -----------------------------------------------------------------------------------------------------------


class OnQuadratics(Quadratic, DIANA):
    steps: Any = 1
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")


class Averaged(Quadratic):
    info: ClassVar[MethodInfo] = MethodInfo("averaged", "Averaged", "nobody", "full", "x")
    steps: Any = 1
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")


def test_on_quadratics_the_error_vanishes_where_without_shifts_it_does_not() -> None:
    rounds = 200
    run = tiny.federation(OnQuadratics(), sizes=STEPS, rounds=rounds, codec_name=RANDK).run()
    plain = tiny.federation(Averaged(), sizes=STEPS, rounds=rounds, codec_name=RANDK.removeprefix("shift+")).run()
    assert off(found(run)) < 1e-9
    assert off(found(plain)) > 0.05
    shifts = np.stack([run.server.notes.get(c.id)["shift/x/values/x"].numpy() for c in run.clients])
    np.testing.assert_allclose(shifts.sum(0), 0, atol=1e-7)  # each is a client's own step where all stand still
    assert np.abs(shifts).max() > 0.1


def test_on_quadratics_a_half_that_is_away_costs_no_floor_either() -> None:
    run = tiny.federation(OnQuadratics(), sizes=STEPS, rounds=500, codec_name=RANDK, participation=0.5).run()
    assert off(found(run)) < 1e-6
    assert off(BEST) < 1e-12


class Slower(OnQuadratics):
    optim: Optim = Optim("sgd", lr=0.015, schedule="constant")


class SlowerAveraged(Averaged):
    optim: Optim = Optim("sgd", lr=0.015, schedule="constant")


@pytest.mark.slow
def test_a_tenth_of_the_entries_is_enough_given_time() -> None:
    """The card's own measurement: 10 clients of 50 entries, of which 5 are sent."""
    method, plain = (
        tiny.federation(m, sizes=STEPS, rounds=2500, codec_name=c).run()
        for m, c in ((Slower(), "shift+randk:share=0.1"), (SlowerAveraged(), "randk:share=0.1"))
    )
    print(off(found(method)), off(found(plain)))
    assert off(found(method)) < 1e-9
    assert off(found(plain)) > 0.1


# the card ---------------------------------------------------------------------------------------------------------------


def test_an_experiment_takes_its_codec_and_refuses_one_that_is_not_right_on_average() -> None:
    made = resolve({"method": "diana"})
    assert made.experiment.codec == DIANA.info.codec
    assert (made.method.optim, made.method.weighting) == (Optim("sgd", lr=0.1, schedule="constant"), "uniform")
    with pytest.raises(UserError, match="diana needs a codec that is right on average"):
        resolve({"method": "diana", "codec": "shift+topk"})
    with pytest.raises(UserError, match=r"quant8 has none: take shift\+qsgd"):
        resolve({"method": "diana", "codec": "quant8"})


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, factors_and_head)
