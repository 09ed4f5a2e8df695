"""What differences are taken from moves at both ends alike, whatever becomes of a message in between."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from quadratics import STEPS, Quadratic, found, off
from weft.contract import MethodInfo, Optim, Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.method import Method
from weft.methods import FedIT, FedPEFT, FedPETuning, FlexLoRA, HeteroFL, RoLoRA
from weft.testing.compare import assert_same, client_state, server_state
from weft.testing.sites import Loopback, remote
from weft.testing.workers import scattered

TOPK = "shift+topk:share=0.3"
DRAWN = ("shift+randk:share=0.3+qsgd:levels=3,bucket=16", "shift+qsgd:levels=1,bucket=8+entropy")
SMALL = FedIT(rank=2, alpha=2.0, sites="q", batch=2, steps=2, optim=Optim("sgd", lr=0.1, schedule="constant"))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 5, "participation": 0.67}
METHODS: tuple[Method, ...] = (
    SMALL,
    RoLoRA(rank=2, batch=2, steps=2),  # of which a half is sent at a time
    FedPETuning(tune=Tune("bottleneck", reduction=8), batch=2, steps=2),
    FedPEFT(batch=2, steps=2),
    HeteroFL(rank=4, rates=(1.0, 0.5), batch=2, steps=2),  # of which clients hold slices
)


def own(run: tiny.Federation, client: str) -> dict[str, Tensor]:
    before = f"{client}:memo shift/now/"
    return {n.removeprefix(before): v for n, v in client_state(run).items() if n.startswith(before)}


def noted(run: tiny.Federation, client: str) -> dict[str, Tensor]:
    return {n.removeprefix("shift/"): v for n, v in run.server.notes.get(client).items() if n.startswith("shift/")}


def kept(x: np.ndarray, share: float) -> np.ndarray:
    """Top-k in NumPy."""
    k = max(round(share * x.size), 1)
    order = np.argsort(-np.abs(x).ravel(), kind="stable")[:k]
    found = np.zeros(x.size)
    found[order] = x.ravel()[order]
    return found.reshape(x.shape)


def test_top_k_with_a_shift_is_ef21_by_hand() -> None:
    """g_i ← g_i + C(Δ_i - g_i); the server has the mean of the cohort's g_i."""
    run = tiny.federation(SMALL, "bert", codec_name=TOPK, **ABOUT)
    x = by_hand.shared(run)
    g: dict[str, dict[str, np.ndarray]] = {c.id: {n: np.zeros(v.shape) for n, v in x.items()} for c in run.clients}
    weights = {c.id: c.n for c in run.clients}
    for t in range(5):
        ends = {
            c.id: by_hand.train(run, x, by_hand.steps_of(run, k, t), lambda p: torch.optim.SGD(p, 0.1), scale=1.0)
            for k, c in enumerate(run.clients)
        }
        record = run.simulation.round(t)
        assert record is not None
        for c in record["cohort"]:
            for n, v in x.items():
                g[c][n] = g[c][n] + kept((ends[c][n] - v).numpy() - g[c][n], 0.3)
        total = sum(weights[c] for c in record["cohort"])
        after = by_hand.shared(run)
        for n, v in x.items():
            mean = sum(weights[c] * g[c][n] for c in record["cohort"]) / total
            by_hand.close(after[n], v + torch.from_numpy(mean), 1e-12)
        for c in weights:
            assert own(run, c).keys() == noted(run, c).keys()
            for n, v in own(run, c).items():
                assert torch.equal(v, noted(run, c)[n])
                by_hand.close(v, torch.from_numpy(g[c][n]), 1e-12)
        x = after


class Averaged(Quadratic):
    info: ClassVar[MethodInfo] = MethodInfo("averaged", "Averaged", "nobody", "full", "x")
    steps: Any = 1
    optim: Optim = Optim("sgd", lr=0.02, schedule="constant")


def test_what_is_left_out_comes_later() -> None:
    """On quadratics the largest third of each step leads to the minimum of all with a shift, and past it without."""
    ends = [
        off(found(tiny.federation(Averaged(), sizes=STEPS, rounds=300, codec_name=c).run())) for c in (TOPK, "topk:share=0.3")
    ]
    assert ends[0] < 1e-6
    assert ends[1] > 0.05


@pytest.mark.parametrize("codec", [TOPK, *DRAWN])
@pytest.mark.parametrize("method", METHODS, ids=[m.info.slug for m in METHODS])
def test_packs_single_clients_workers_and_sites_have_the_same(method: Method, codec: str) -> None:
    about: dict[str, Any] = {"sizes": (6, 5, 7, 4), "rounds": 3, "participation": 0.75, "precision": "float64"}
    one = tiny.federation(method, codec_name=codec, pack=1, **about).run()
    packed = tiny.federation(method, codec_name=codec, pack=3, **about).run()
    spread = scattered(method, uplink=codec, **about)[0].run()
    away, loop = remote(method, codec, **about)
    away.run()
    exact = codec == TOPK
    for other in (packed, spread, away):
        assert_same(server_state(one), server_state(other), 1e-9 if exact else 1e-5)
    for c in one.clients:
        site = loop.sites[c.id]
        site.store.load(site.client)
        theirs = {n.removeprefix("shift/now/"): v for n, v in site.client.memo.items() if n.startswith("shift/now/")}
        assert theirs.keys() == noted(away, c.id).keys()
        assert all(torch.equal(v, noted(away, c.id)[n]) for n, v in theirs.items())
    assert any(noted(one, c.id) for c in one.clients)


# when a message is lost ---------------------------------------------------------------------------------------------------


class Lossy(Loopback):
    """Some sites train and save, and their answers are lost on the way."""

    lost: frozenset[str] = frozenset()

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        return {c: raw for c, raw in super().ask(questions).items() if c not in self.lost}


def sites(method: Method = SMALL, codec: str = TOPK) -> tuple[tiny.Federation, Lossy]:
    run, loop = remote(method, codec, model="bert", sizes=(6, 5, 7), rounds=8)
    lossy = Lossy(run, codec)
    lossy.sites = loop.sites
    run.simulation.turns.transport = lossy  # type: ignore[attr-defined]
    return run, lossy


def at_site(loop: Lossy, client: str) -> dict[str, Tensor]:
    site = loop.sites[client]
    site.store.load(site.client)
    return {n.removeprefix("shift/now/"): v.clone() for n, v in site.client.memo.items() if n.startswith("shift/now/")}


def same(run: tiny.Federation, loop: Lossy, client: str) -> bool:
    mine, theirs = at_site(loop, client), noted(run, client)
    return mine.keys() == theirs.keys() and all(torch.equal(v, theirs[n]) for n, v in mine.items())


@pytest.mark.parametrize("first", [0, 2])
def test_answers_that_are_lost_are_taken_back_at_the_client(first: int) -> None:
    run, loop = sites()
    for t in range(first):
        run.simulation.round(t)
    loop.lost = frozenset({"client-1"})
    for t in range(first, first + 2):  # twice in a row
        run.simulation.round(t)
        assert not same(run, loop, "client-1")
        assert same(run, loop, "client-2")
    loop.lost = frozenset()
    seen = by_hand.record(run)
    record = run.simulation.round(first + 2)
    assert not any(u.forgotten for u in seen[0])  # it goes on from its last shift, and not anew
    assert record is not None
    assert not record["refused"]
    assert same(run, loop, "client-1")


def test_a_site_that_has_lost_its_memory_begins_anew_and_is_not_refused() -> None:
    run, loop = sites()
    for t in range(2):
        run.simulation.round(t)
    site = loop.sites["client-1"]
    site.store.load(site.client)
    site.client.memo = {"nothing": 0}
    site.store.save(site.client)
    site.store.commit()
    record = run.simulation.round(2)
    assert record is not None
    assert not record["refused"]
    assert len(run.simulation.intake.counted) == 3
    assert same(run, loop, "client-1")
    record = run.simulation.round(3)
    assert record is not None
    assert not record["refused"]
    assert same(run, loop, "client-1")


def test_a_server_that_goes_back_takes_its_notes_with_it_and_nobody_is_refused() -> None:
    run, loop = sites()
    run.simulation.round(0)
    tensors, state = run.server.tensors_and_json()
    before = {n: v.clone() for n, v in tensors.items()}, copy.deepcopy(state)
    old = {c.id: noted(run, c.id) for c in run.clients}
    for t in range(1, 4):
        run.simulation.round(t)
    run.server.roll_back(*before)
    assert all(torch.equal(v, old[c.id][n]) for c in run.clients for n, v in noted(run, c.id).items())
    for t in range(4, 6):
        record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]
        assert all(same(run, loop, c.id) for c in run.clients)


def test_a_round_that_is_undone_moves_no_shift() -> None:
    run, loop = sites()
    run.simulation.round(0)
    old = {c.id: noted(run, c.id) for c in run.clients}
    with pytest.MonkeyPatch.context() as patch:
        aggregate = type(run.method).aggregate

        def spoilt(self: Any, server: Any, updates: Any) -> None:
            aggregate(self, server, updates)
            server.memo["spoilt"] = torch.tensor([torch.inf])

        patch.setattr(type(run.method), "aggregate", spoilt)
        record = run.simulation.round(1)
    assert record is not None
    assert "skipped" in record["robust"]
    assert all(torch.equal(v, old[c.id][n]) for c in run.clients for n, v in noted(run, c.id).items())
    record = run.simulation.round(2)
    assert record is not None
    assert not record["refused"]
    assert all(same(run, loop, c.id) for c in run.clients)


def test_somebody_who_takes_differences_from_elsewhere_is_refused() -> None:
    run, loop = sites()
    run.simulation.round(0)
    site = loop.sites["client-1"]
    site.store.load(site.client)
    site.client.memo["shift/now/lora/0.attention.self.query/A"] = torch.ones(1)
    name = next(n for n in site.client.memo if n.startswith("shift/now/head"))
    site.client.memo[name] = site.client.memo[name] + 1
    site.store.save(site.client)
    site.store.commit()
    record = run.simulation.round(1)
    assert record is not None
    assert record["refused"] == {"client-1": "The differences were taken from other values than those held here."}
    record = run.simulation.round(2)
    assert record is not None
    assert not record["refused"]
    assert same(run, loop, "client-1")


# settings -------------------------------------------------------------------------------------------------------------


def test_a_method_whose_values_are_of_another_frame_each_round_has_none() -> None:
    with pytest.raises(UserError, match=r"flexlora needs each update by itself .* so that a shift would"):
        resolve({"method": "flexlora", "codec": TOPK})
    assert not FlexLoRA().sums
    assert resolve({"method": "fedit", "codec": TOPK}).experiment.codec == TOPK
