"""The aggregation error of a round, against the same from dense matrices in NumPy."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import cohorts
import tiny
import toy_runs
from every_method import built
from weft.adaptation.lora import LoRA
from weft.contract import PERSONAL, SHARED, Optim, Routed, Scope
from weft.federation.aggregation_error import AggregationError, _Sum, common
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.robust_mean import Robust
from weft.methods import FedExLoRA, FedIT, FedRA, FFALoRA, FlexLoRA, FLoRA, FRLoRA, HeteroFL, HetLoRA, RoLoRA
from weft.report.terminal import meaning
from weft.tensors.lowrank import LowRank

OPTIM = Optim("sgd", lr=0.5, schedule="constant")
QUICK: dict[str, Any] = {"steps": 3, "batch": 3, "optim": OPTIM}
FEDIT = FedIT(rank=2, alpha=6.0, sites="q,v", **QUICK)
SIZES, CLASSES = (9, 5, 7, 4), 3
Matrices = dict[str, np.ndarray]


def double(value: object) -> np.ndarray:
    assert isinstance(value, Tensor)
    return value.double().numpy()


def ratio(applied: Matrices, wanted: Matrices) -> float:
    gap = sum(np.sum((applied[n] - wanted[n]) ** 2) for n in wanted)
    return math.sqrt(gap / sum(np.sum(m**2) for m in wanted.values()))


def products(values: by_hand.Values, scale: float) -> Matrices:
    """s B A by site, of whole factors."""
    names = [n for n in values if n.startswith("lora/") and n.endswith("/B")]
    return {n.split("/")[1]: scale * double(values[n]) @ double(values[n[:-1] + "A"]) for n in names}


def deltas(values: by_hand.Values) -> Matrices:
    return {n.split("/")[1]: double(v) for n, v in values.items() if n.endswith("/delta")}


def mean_of(updates: Iterable[Update], before: dict[str, Matrices], scales: dict[str, float], uniform: bool) -> Matrices:
    """Σ p_k (s_k B_k A_k - what client k had before), where all have all layers."""
    found: Matrices = {}
    total = 0.0
    for u in updates:
        w = 1.0 if uniform else u.weight
        total += w
        for site, old in before[u.client.id].items():
            a, b = (double(u.tensors[f"lora/{site}/{role}"]) for role in "AB")
            found[site] = found.get(site, 0.0) + w * (scales[u.client.id] * b @ a - old)
    return {site: m / total for site, m in found.items()}


def same(scale: float) -> dict[str, float]:
    return {f"client-{k}": scale for k in range(len(SIZES))}


@pytest.mark.parametrize(("weighting", "rule"), [("examples", "none"), ("uniform", "none"), ("examples", "median")])
def test_fedit_over_three_rounds_with_clients_that_are_away(weighting: Any, rule: str) -> None:
    run = tiny.federation(replace(FEDIT, weighting=weighting), sizes=SIZES, rounds=3)
    run.server.robust = Robust(rule)
    seen = by_hand.record(run)
    found = []
    for t, present in enumerate(((0, 1, 2), (0, 2, 3), (1, 2, 3))):
        old = products(by_hand.shared(run), 3.0)
        found.append(cohorts.play(run, t, present)["aggregation_error"])
        new = products(by_hand.shared(run), 3.0)
        wanted = mean_of(seen[t], dict.fromkeys(same(3.0), old), same(3.0), weighting == "uniform")
        assert found[t] == pytest.approx(ratio({n: new[n] - old[n] for n in new}, wanted), rel=1e-9)
    assert min(found) > 1e-3


def test_frlora_starts_from_the_weights_and_puts_a_product_of_means_beside_them() -> None:
    run = tiny.federation(FRLoRA(rank=2, alpha=6.0, sites="q", **QUICK), sizes=SIZES, rounds=3)
    seen = by_hand.record(run)
    begun = products(run.server.start, 3.0)
    for t, present in enumerate(((0, 1, 2), (0, 3), (1, 2, 3))):
        found = cohorts.play(run, t, present)["aggregation_error"]
        applied = {}
        for site, start in begun.items():
            a, b = (np.mean([double(u.tensors[f"lora/{site}/{role}"]) for u in seen[t]], 0) for role in "AB")
            applied[site] = 3.0 * b @ a - start
        wanted = mean_of(seen[t], dict.fromkeys(same(3.0), begun), same(3.0), uniform=True)
        assert found == pytest.approx(ratio(applied, wanted), rel=1e-9)
        assert found > 1e-3


def test_flexlora_with_ranks_that_differ() -> None:
    ranks = (2, 3, 5, 4)
    run = tiny.federation(
        FlexLoRA(rank=2, alpha=6.0, sites="q", **QUICK), sizes=SIZES, rounds=3, facts=[{"rank": r} for r in ranks]
    )
    seen = by_hand.record(run)
    scales = {f"client-{k}": 6.0 / r for k, r in enumerate(ranks)}
    found = []
    for t, present in enumerate(((0, 1, 2), (0, 2, 3), (1, 3))):
        had = {f"client-{k}": products(by_hand.start_of(run, k, t), scales[f"client-{k}"]) for k in present}
        old = products(by_hand.shared(run), 3.0)
        found.append(cohorts.play(run, t, present)["aggregation_error"])
        new = products(by_hand.shared(run), 3.0)
        wanted = mean_of(seen[t], had, scales, uniform=False)
        assert found[t] == pytest.approx(ratio({n: new[n] - old[n] for n in new}, wanted), rel=1e-9, abs=1e-12)
    assert found[0] < 1e-12 < 1e-3 < min(found[1:])


def test_clients_that_have_leading_ranks_of_the_server() -> None:
    run = tiny.federation(HeteroFL(rank=4, alpha=4.0, rates=(1.0, 0.5), **QUICK), sizes=SIZES, rounds=2)
    seen = by_hand.record(run)
    for t in range(2):
        had = {c.id: products(by_hand.start_of(run, k, t), 1.0) for k, c in enumerate(run.clients)}
        old = products(by_hand.shared(run), 1.0)
        found = cohorts.play(run, t, range(len(SIZES)))["aggregation_error"]
        new = products(by_hand.shared(run), 1.0)
        assert {tuple(u.tensors[n].shape) for u in seen[t] for n in u.tensors if n.endswith("/A")} == {(4, 32), (2, 32)}
        wanted = mean_of(seen[t], had, same(1.0), uniform=True)
        assert found == pytest.approx(ratio({n: new[n] - old[n] for n in new}, wanted), rel=1e-9)


def test_clients_that_send_fewer_ranks_than_they_had() -> None:
    method = HetLoRA(rank=6, least=1, alpha=9.0, gamma=0.7, decay=0.5, **QUICK)
    run = tiny.federation(method, sizes=SIZES, rounds=3, facts=[{"rank": r} for r in (6, 3, 4, 5)])
    seen = by_hand.record(run)
    fewer = 0
    for t in range(3):
        had = {c.id: products(by_hand.start_of(run, k, t), 1.5) for k, c in enumerate(run.clients)}
        ranks = {c.id: run.server.said.get(c.id, c.facts)["rank"] for c in run.clients}
        old = products(by_hand.shared(run), 1.5)
        found = cohorts.play(run, t, range(len(SIZES)))["aggregation_error"]
        new = products(by_hand.shared(run), 1.5)
        fewer += sum(u.facts["rank"] < ranks[u.client.id] for u in seen[t])
        wanted = mean_of(seen[t], had, same(1.5), uniform=False)
        assert found == pytest.approx(ratio({n: new[n] - old[n] for n in new}, wanted), rel=1e-9)
    assert fewer


@pytest.mark.parametrize("role", ["A", "B"])
def test_a_strangers_factors_without_a_product_count_for_nothing(role: str) -> None:
    method = HetLoRA(rank=6, least=1, alpha=9.0, gamma=0.7, decay=0.5, **QUICK)
    values = []
    for spoilt in (True, False):
        run = tiny.federation(method, sizes=SIZES, rounds=1, facts=[{"rank": r} for r in (6, 3, 4, 5)])
        updates = list(run.method.train(run.pack()))
        turns = {c.id: by_hand.turn(run, u.client) for c, u in zip(run.clients, updates, strict=True)}
        odd = dict(updates[0].tensors)
        odd |= {n: v.narrow(0 if role == "A" else 1, 0, 2) for n, v in odd.items() if n[:5] == "lora/" and n.endswith(role)}  # type: ignore[union-attr]
        first = [replace(updates[0], tensors=odd)] if spoilt else []
        error = AggregationError(run.method, run.server, turns)
        run.method.aggregate(run.server, error.passing([*first, *updates[1:]]))
        values.append(error.value())
    assert values[0] == values[1] is not None


def test_a_layer_counts_the_clients_that_sent_something_of_it() -> None:
    run = tiny.federation(FedRA(rank=2, alpha=6.0, **QUICK), sizes=SIZES, rounds=2)
    seen = by_hand.record(run)
    partial = 0
    for t in range(2):
        old = products(by_hand.shared(run), 3.0)
        found = cohorts.play(run, t, range(len(SIZES)))["aggregation_error"]
        new = products(by_hand.shared(run), 3.0)
        wanted: Matrices = {}
        for site in old:
            own = [u for u in seen[t] if f"lora/{site}/B" in u.tensors]
            partial += 0 < len(own) < len(SIZES)
            wanted[site] = 0.0 * old[site]
            for u in own:
                w = 1.0 if run.server.weighting == "uniform" else u.weight
                total = sum(1.0 if run.server.weighting == "uniform" else v.weight for v in own)
                a, b = (double(u.tensors[f"lora/{site}/{role}"]) for role in "AB")
                wanted[site] = wanted[site] + w / total * (3.0 * b @ a - old[site])
        assert found == pytest.approx(ratio({n: new[n] - old[n] for n in new}, wanted), rel=1e-9)
    assert partial


@pytest.mark.parametrize(
    "method",
    [
        FLoRA(rank=2, ranks=(2, 3, 5, 4), sites="q,v", **QUICK),
        FLoRA(rank=12, sites="q", **QUICK),  # its sum is compressed on the way
        FedExLoRA(rank=2, alpha=6.0, sites="q,v", **QUICK),
        FFALoRA(rank=2, alpha=6.0, sites="q,v", **QUICK),
        RoLoRA(rank=2, alpha=6.0, sites="q,v", **QUICK),
        FlexLoRA(rank=32, alpha=6.0, mix="none", sites="q", **QUICK),
    ],
    ids=["flora", "flora-compressed", "fedex-lora", "ffa-lora", "rolora", "flexlora"],
)
def test_exact_rules_make_no_error(method: Method) -> None:
    run = tiny.federation(method, sizes=SIZES, rounds=5)
    for t, present in enumerate(((0, 1, 2), (0, 2, 3), (1, 2), (0, 1, 2, 3), (2, 3))):
        assert cohorts.play(run, t, present)["aggregation_error"] < 1e-12


def test_what_fedex_lora_leaves_of_its_residual_is_its_error() -> None:
    run = tiny.federation(FedExLoRA(rank=2, alpha=6.0, sites="q", keep=1, **QUICK), sizes=SIZES, rounds=2)
    seen = by_hand.record(run)
    for t, present in enumerate(((0, 1, 2), (0, 2, 3))):
        before = by_hand.shared(run)
        old = products(before, 3.0)
        found = cohorts.play(run, t, present)["aggregation_error"]
        after = by_hand.shared(run)
        new, grown, had = products(after, 3.0), deltas(after), deltas(before)
        wanted = mean_of(seen[t], dict.fromkeys(same(3.0), old), same(3.0), uniform=True)
        assert found == pytest.approx(ratio({n: new[n] - old[n] + grown[n] - had[n] for n in new}, wanted), rel=1e-9)
        assert found > 1e-4


@pytest.mark.parametrize("slug", ["fedsa-lora", "fedalt", "pfedlora", "lora-a2", "fedbf"])
def test_where_it_means_nothing_there_is_none(slug: str) -> None:
    record = tiny.federation(built(slug), sizes=SIZES, rounds=1).simulation.round(0)
    assert record is not None
    assert record["loss"] is not None
    assert "aggregation_error" not in record


def test_a_run_tells_it_in_each_round_and_in_the_end_unless_it_is_not_to(tmp_path: Path) -> None:
    about: dict[str, Any] = {
        "parameters": {"rank": 2, "sites": "q,v", "steps": 3, "batch": 4, "lr": 0.03},
        "baselines": ["local"],
    }
    run = toy_runs.run(tmp_path / "with", **about)
    found = [line["aggregation_error"] for line in run.rounds]
    assert len(found) == 2
    assert min(found) > 1e-6
    assert run.summary["aggregation_error"] == {"last": found[-1], "mean": pytest.approx(sum(found) / 2)}
    assert [row["aggregation_error"] for row in run.records()] == found
    assert f"aggregation error {found[-1]:.2g} in the last round" in meaning(run.summary)
    assert run.summary["baselines"]["local"]["aggregation_error"] is None, "everybody is alone in it"
    without = toy_runs.run(tmp_path / "without", aggregation_error=False, **about)
    assert all("aggregation_error" not in line for line in without.rounds)
    assert without.summary["aggregation_error"] is None
    assert [line["loss"] for line in without.rounds] == [line["loss"] for line in run.rounds]


def test_a_round_in_which_nobody_moves_has_none() -> None:
    run = tiny.federation(replace(FEDIT, optim=OPTIM.but(lr=0.0)), sizes=SIZES, rounds=1)
    assert "aggregation_error" not in cohorts.play(run, 0, (0, 1))


def test_a_round_that_counts_for_nothing_has_none() -> None:
    run = tiny.federation(FEDIT, sizes=SIZES, rounds=2)
    run.server.robust = Robust("median")
    assert cohorts.play(run, 0, (0, 1, 2))["aggregation_error"] > 0
    record = cohorts.play(run, 1, (0, 1))
    assert "skipped" in record["robust"]
    assert "aggregation_error" not in record


def test_common_is_a_lora_of_which_nothing_stays_at_a_client() -> None:
    lora, sent = LoRA(2, 4.0), Scope.UP | Scope.KEEP
    scopes: dict[str, Any] = {
        "shared": SHARED, "given": Scope.DOWN, "sent": Scope.UP, "own": PERSONAL, "kept": sent, "none": Scope.NONE,
        "half": {"A": SHARED, "B": PERSONAL}, "frozen": {"A": Scope.DOWN, "B": SHARED},
    }  # fmt: skip
    adaptation = {name: (lora, scope) for name, scope in scopes.items()}
    assert common(adaptation | {"routed": (Routed(2, 4.0), SHARED)}) == {"shared", "sent", "frozen"}


def test_it_holds_no_update_when_it_takes_the_next() -> None:
    run = tiny.federation(FEDIT, sizes=SIZES, rounds=2)
    cohorts.play(run, 0, (0, 1, 2, 3))
    infos = [c.info(()) for c in run.clients]
    turns = {info.id: by_hand.turn(run, info) for info in infos}
    error = AggregationError(run.method, run.server, turns)
    alive: list[weakref.ref[Tensor]] = []

    def arriving() -> Iterable[Update]:
        for k in range(len(SIZES)):
            gc.collect()
            assert not any(ref() is not None for ref in alive)
            update = by_hand.invented(run, [1.0])[0]
            update.client = infos[k]
            alive.extend(weakref.ref(v) for v in update.tensors.values() if isinstance(v, Tensor))
            yield update
            del update

    for update in error.passing(arriving()):
        del update
    assert alive
    assert error.value() is not None


def test_a_sum_of_very_many_clients_stays_small_and_right() -> None:
    g = torch.Generator().manual_seed(0)
    d_out, d_in, r = 12, 16, 2
    total, dense, largest = _Sum((d_out, d_in)), torch.zeros(d_out, d_in, dtype=torch.float64), 0
    old = LowRank(*(torch.randn(s, generator=g, dtype=torch.float64) for s in ((d_out, r), (r, d_in))), 1.5)
    for k in range(60):
        new = [torch.randn(s, generator=g, dtype=torch.float64) for s in ((r, d_in), (d_out, r))]
        a, b = (None if k % 5 == i else v for i, v in enumerate(new))
        total.move(old, a, b, k + 1.0)
        total.weight += k + 1.0
        dense += (k + 1) * 1.5 * ((old.B if b is None else b) @ (old.A if a is None else a) - old.B @ old.A)
        largest = max(largest, sum(term.rank for term in total.terms))
    assert largest <= 1.5 * 12
    by_hand.close(total.mean().dense(), dense / sum(range(1, 61)), 1e-12)
