"""FedEx-LoRA against its card: factors as FedIT's, and weights that move by exactly the mean of the clients' updates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import HEAD, SITES, Case, Sizes, Turn, factors_and_head, lora
from weft.contract import Optim
from weft.federation.scope import Scope
from weft.methods import FedExLoRA, FedIT
from weft.tensors.lowrank import LowRank

SCALE = 3.0
SMALL = FedExLoRA(rank=2, alpha=6.0, sites="q", steps=2, batch=2, optim=Optim("sgd", lr=2.0, schedule="constant"))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, 2.0)


def deltas(run: tiny.Federation) -> dict[str, LowRank]:
    found = {}
    for site in by_hand.sites(run):
        value = run.server.shared[f"base/{site}/delta"]
        assert isinstance(value, LowRank)
        found[site] = value
    return found


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_four_rounds_by_hand_with_clients_that_are_away(weighting: Any) -> None:
    run = tiny.federation(replace(SMALL, weighting=weighting), **ABOUT)
    x = by_hand.shared(run)
    for t, present in enumerate(cohorts.ABSENT):
        ends = [
            by_hand.train(run, x, by_hand.steps_of(run, k, t), sgd, scale=SCALE, only=lambda n: not n.startswith("base/"))
            for k in present
        ]
        counts = [1.0 if weighting == "uniform" else float(run.clients[k].n) for k in present]
        p = [c / sum(counts) for c in counts]
        cohorts.play(run, t, present)
        wanted = {n: sum(w * e[n] for w, e in zip(p, ends, strict=True)) for n in x if not n.startswith("base/")}
        for site in by_hand.sites(run):
            a, b = f"lora/{site}/A", f"lora/{site}/B"
            mean = sum(w * e[b] @ e[a] for w, e in zip(p, ends, strict=True))
            residual = SCALE * (mean - wanted[b] @ wanted[a])  # type: ignore[operator]
            assert t == 0 or residual.norm() > 1e-5
            wanted[f"base/{site}/delta"] = x[f"base/{site}/delta"] + residual
        x = by_hand.shared(run)
        assert x.keys() == wanted.keys()
        for name, value in wanted.items():
            by_hand.close(x[name], value, 1e-9)  # type: ignore[arg-type]


def test_what_everybody_predicts_with_moves_by_the_mean_of_the_products() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    seen = by_hand.record(run)
    for t in range(3):
        before = by_hand.shared(run)
        run.simulation.round(t)
        after = by_hand.shared(run)
        for site in by_hand.sites(run):
            a, b, base = (f"lora/{site}/A", f"lora/{site}/B", f"base/{site}/delta")
            mean = sum(u.tensors[b] @ u.tensors[a] for u in seen[t]) / 3  # type: ignore[operator]
            by_hand.close(after[base] + SCALE * after[b] @ after[a], before[base] + SCALE * mean, 1e-12)


def test_factors_and_head_are_those_of_averaging_as_long_as_the_weights_are() -> None:
    plain = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=2, weighting="uniform", optim=SMALL.optim)
    found, wanted = (by_hand.shared(tiny.federation(m, **ABOUT).run(1)) for m in (SMALL, plain))
    for name, value in wanted.items():
        by_hand.close(found[name], value, 1e-12)


def test_one_client_and_clients_that_agree_leave_nothing_over() -> None:
    run = tiny.federation(SMALL, **ABOUT | {"sizes": (6,)}).run(2)
    assert all(delta.rank == 0 for delta in deltas(run).values())
    run = tiny.federation(SMALL, **ABOUT)
    made = by_hand.invented(run, [3.0, 1.0])
    run.method.aggregate(run.server, [made[0], replace(made[1], tensors=made[0].tensors)])
    assert all(float(delta.dense().abs().max()) < 1e-15 for delta in deltas(run).values())


def test_the_rank_is_that_of_the_clients_but_one_and_a_cut_loses_the_smallest_values() -> None:
    run, cut = (tiny.federation(replace(SMALL, keep=keep), **ABOUT) for keep in (0, 3))
    for some in (run, cut):
        some.method.aggregate(some.server, by_hand.invented(some, [5.0, 1.0, 2.0]))
    for site, delta in deltas(run).items():
        _, s, _ = torch.linalg.svd(delta.dense())
        assert delta.rank == 4
        assert int((s > 1e-12).sum()) == 4
        short = deltas(cut)[site]
        assert short.rank == 3
        off = float((delta.dense() - short.dense()).norm())
        assert math.isclose(off, float(s[3:].square().sum().sqrt()), rel_tol=1e-9)


def test_no_clients_own_factor_can_be_seen_in_what_goes_down() -> None:
    """A of a residual has orthonormal rows, and none of them is along a client's own difference."""
    run = tiny.federation(SMALL, **ABOUT)
    made = by_hand.invented(run, [5.0, 1.0, 2.0])
    run.method.aggregate(run.server, made)
    for site, delta in deltas(run).items():
        by_hand.close(delta.A @ delta.A.mT, torch.eye(4, dtype=torch.float64), 1e-9)
        mean = sum(u.tensors[f"lora/{site}/A"] for u in made) / 3  # type: ignore[arg-type]
        for u in made:
            own = u.tensors[f"lora/{site}/A"] - mean  # type: ignore[operator]
            alike = (own / own.norm(dim=1, keepdim=True)) @ delta.A.mT
            assert float(alike.abs().max()) < 1 - 1e-6


def test_a_round_without_updates_changes_nothing() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    before = by_hand.shared(run)
    run.method.aggregate(run.server, iter(()))
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_on_roberta_base_the_upload_is_that_of_averaging() -> None:
    method, backbone = FedExLoRA(), by_hand.roberta_base()
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 12 * 2 * 4 * (768 + 768)
    assert (method.rank, method.alpha, method.sites, method.weighting) == (4, 8.0, "q,v", "uniform")
    assert method.optim == Optim("adamw", lr=1e-3, weight_decay=0.01, warmup=0.06)
    assert (method.epochs, method.batch) == (3.0, 128)


# what other tests ask of this method --------------------------------------------------------------------------------------


def residual_bytes(turn: Turn) -> Sizes:
    """Both means, and a residual of the rank of all senders but one."""
    senders = sum(size > 0 for size in tiny.SIZES)
    return {"lora": lora(2), "head": HEAD, "base": lora(2 * (senders - 1))}


BYTES = Case({"rank": 2, **SITES}, residual_bytes, factors_and_head)
BYTES_VARIANTS = {
    "cut": Case({"rank": 2, "keep": 3, **SITES}, lambda turn: {"lora": lora(2), "head": HEAD, "base": lora(3)}, factors_and_head)
}
