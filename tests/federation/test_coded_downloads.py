"""Downloads by a quantiser: the server goes on with what arrives, so that everybody holds the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
import toy_runs
from weft.contract import Optim, Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.method import Method
from weft.methods import FedIT, FedOBD, HeteroFL, PFedPG, RoLoRA
from weft.tensors.init import leading
from weft.testing.compare import assert_same, server_state
from weft.testing.sites import remote
from weft.testing.workers import scattered

SMALL = FedIT(rank=2, alpha=2.0, sites="q", batch=2, steps=2, optim=Optim("sgd", lr=0.1, schedule="constant"))
CODED = ("quant8", "half", "nf4:block=8", "nnadq", "qsgd:levels=7,bucket=16", "quant8+entropy", "sign")


def down(run: tiny.Federation, t: int) -> int:
    return run.simulation.setup.exchange.ledger.totals(round=t, phase="train", direction="down").payload


@pytest.mark.parametrize("codec", CODED)
def test_everybody_holds_what_the_server_holds_whoever_was_away(codec: str) -> None:
    """Uploads are differences to what the client holds: the checksum in each would refuse a client that holds something else."""
    run, loop = remote(
        SMALL, "quant8", download_codec=codec, model="bert", sizes=(6, 5, 7, 4), rounds=6, participation=0.5, precision="float32"
    )
    for t in range(6):
        record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]
    for name, site in loop.sites.items():
        if run.server.synced.get(name) == max(run.server.synced.values()):
            older = {n: v for n, v in run.server.shared.items() if run.server.stamps[n] <= site.clock}
            assert all(torch.equal(site.copy[n], v) for n, v in older.items() if isinstance(v, Tensor))


def test_a_round_by_hand_and_its_bytes() -> None:
    run = tiny.federation(SMALL, "bert", download_codec="quant8", sizes=(6, 5, 7), rounds=3)
    x = by_hand.shared(run)
    for t in range(3):
        ends = [
            by_hand.train(run, x, by_hand.steps_of(run, k, t), lambda p: torch.optim.SGD(p, 0.1), scale=1.0) for k in range(3)
        ]
        run.simulation.round(t)
        after = by_hand.shared(run)
        for n, value in after.items():
            mean = sum(w * e[n] for w, e in zip((6, 5, 7), ends, strict=True)) / 18
            scale = float(mean.abs().max())
            if scale == 0:
                assert not bool(value.any())
                continue
            levels = value / scale * 127
            by_hand.close(levels, levels.round(), 1e-4)
            assert float((value - mean).abs().max()) <= scale / 127 * (1 + 1e-6)
        assert down(run, t) == (0 if t == 0 else 3 * sum(v.numel() + 4 for v in x.values()))
        x = after


@pytest.mark.parametrize("codec", ["quant8", "nnadq", "half", "nf4"])
def test_at_a_rate_of_zero_the_model_stands_still(codec: str) -> None:
    """But for the rounding of its start values."""
    still = FedIT(rank=2, batch=2, steps=1, optim=Optim("sgd", lr=0.0, schedule="constant"))
    run = tiny.federation(still, "bert", download_codec=codec, sizes=(6, 5), rounds=4, precision="float32")
    run.simulation.round(0)
    before = by_hand.shared(run)
    for t in range(1, 4):
        run.simulation.round(t)
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


@pytest.mark.parametrize(
    "method", [SMALL, FedOBD(tune=Tune("lora", rank=2), batch=2, steps=2), PFedPG()], ids=lambda m: m.info.slug
)
def test_packs_workers_and_sites_have_the_same(method: Method) -> None:
    about: dict[str, Any] = {"sizes": (6, 5, 7, 4), "rounds": 3, "participation": 0.75, "download_codec": "half"}
    one = tiny.federation(method, codec_name="nnadq", pack=1, **about).run()
    for other in (
        tiny.federation(method, codec_name="nnadq", pack=3, **about).run(),
        scattered(method, uplink="nnadq", **about)[0].run(),
        remote(method, "nnadq", **about)[0].run(),
    ):
        assert_same(server_state(one), server_state(other), 1e-5)


def test_a_slice_of_a_value_goes_exact() -> None:
    """Its own largest entry is another than the whole's, so that other levels would arrive than the server holds."""
    method = HeteroFL(rank=4, rates=(1.0, 0.5), batch=2, steps=2)
    run, loop = remote(method, "quant8", download_codec="quant8", sizes=(6, 5, 7, 4), rounds=4, precision="float32")
    for t in range(4):
        with pytest.MonkeyPatch.context() as patch:
            if t == 2:  # a round in which nothing counts: in the next one everybody goes on with what it has
                patch.setattr(type(method), "aggregate", lambda self, server, updates: list(updates))
            record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]
    for site in loop.sites.values():
        for name, value in site.copy.items():
            whole = run.server.shared[name]
            assert isinstance(value, Tensor)
            assert isinstance(whole, Tensor)
            assert run.server.stamps[name] > site.clock or torch.equal(value, leading(whole, tuple(value.shape)))
    sliced = [c.id for c in run.clients if c.facts["rate"] < 1]
    billed = run.simulation.setup.exchange.ledger.by_client(phase="train", direction="down")
    sizes = {n: v for n, v in loop.sites[sliced[0]].copy.items() if isinstance(v, Tensor)}
    assert billed[sliced[0]].payload == 2 * sum(v.numel() * 4 for v in sizes.values())


def test_what_a_round_has_not_given_is_not_sent_again() -> None:
    method = RoLoRA(rank=2, sites="q", steps=2, batch=2)
    run = tiny.federation(method, "bert", download_codec="quant8", sizes=(6, 5), rounds=4)
    factor = {r: sum(v.numel() + 4 for n, v in by_hand.shared(run).items() if n.endswith(r)) for r in "AB"}
    for t in range(4):
        run.simulation.round(t)
        assert down(run, t) == (0 if t == 0 else 2 * factor["B" if t % 2 else "A"])


def test_what_can_be_no_codec_of_downloads_is_refused_in_a_sentence() -> None:
    for codec in ("topk", "randk:share=0.5+quant8", "shift+quant8"):
        with pytest.raises(UserError, match=r"can't be the codec of downloads"):
            resolve({"method": "fedit", "download_codec": codec})
    with pytest.raises(UserError, match="no codec"):
        resolve({"method": "fedit", "download_codec": "quant9"})
    assert resolve({"method": "fedobd"}).experiment.download_codec == "nnadq"
    assert resolve({"method": "fedobd", "codec": "identity", "download_codec": "identity"}).experiment.codec == "identity"


def test_a_method_that_sends_terms_is_refused_before_it_trains(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    with pytest.raises(UserError, match=r"flora sends terms .* leave --download-codec out"):
        toy_runs.run(tmp_path, method="flora", download_codec="quant8")
