"""The aggregation error, drift and effective rank of a round, against the same from dense matrices in NumPy."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterable
from dataclasses import fields, replace
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
from every_method import built, small
from weft.adaptation.lora import LoRA
from weft.contract import PERSONAL, SHARED, Optim, Routed, Scope
from weft.federation.diagnostics import Diagnostics, density_of, effective_rank
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.moves import Moves, common, square
from weft.federation.robust_mean import Robust
from weft.federation.spread import MOST, Spread
from weft.methods import FedExLoRA, FedIT, FedRA, FFALoRA, FlexLoRA, FLoRA, FRLoRA, HeteroFL, HetLoRA, RoLoRA
from weft.report.terminal import meaning
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked

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
        error = Diagnostics(run.method, run.server, turns)
        run.method.aggregate(run.server, error.passing([*first, *updates[1:]]))
        values.append(error.values()["aggregation_error"])
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
    without = toy_runs.run(tmp_path / "without", diagnostics=False, **about)
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
    error = Diagnostics(run.method, run.server, turns)
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
    assert error.values()["aggregation_error"] > 0


def test_a_sum_of_very_many_clients_stays_small_and_right() -> None:
    g = torch.Generator().manual_seed(0)
    d_out, d_in, r = 12, 16, 2
    total, dense, largest = Moves((d_out, d_in)), torch.zeros(d_out, d_in, dtype=torch.float64), 0
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


def spread(seen: list[Update], changes: dict[str, Matrices], uniform: bool = False) -> float:
    """√(Σ p ‖Δ - Δ̄‖² / ‖Δ̄‖²) over all matrices of all clients, by client and name."""
    weights = {u.client.id: 1.0 if uniform else u.weight for u in seen}
    apart = together = 0.0
    for name in next(iter(changes.values())):
        mean = sum(w * changes[c][name] for c, w in weights.items()) / sum(weights.values())
        apart += sum(w * float(np.sum((changes[c][name] - mean) ** 2)) for c, w in weights.items()) / sum(weights.values())
        together += float(np.sum(mean**2))
    return math.sqrt(apart / together)


def changed(u: Update, before: Matrices, tensors: Iterable[str]) -> Matrices:
    return {n: double(u.tensors[n]) - before[n] for n in tensors}


@pytest.mark.parametrize(
    ("weighting", "kept"), [("examples", None), ("uniform", None), ("examples", PERSONAL), ("examples", SHARED | Scope.KEEP)]
)
def test_drift_is_of_products_and_of_every_other_tensor_as_it_is(weighting: Any, kept: Scope | None) -> None:
    class Keeping(FedIT):
        def adapt(self, *about: Any) -> Any:
            own = super().adapt(*about)
            return own if kept is None else own | {"head": (own["head"][0], kept)}

    settings = {f.name: getattr(FEDIT, f.name) for f in fields(FEDIT)} | {"weighting": weighting}
    run = tiny.federation(Keeping(**settings), sizes=SIZES, rounds=3)
    seen = by_hand.record(run)
    for t, present in enumerate(((0, 1, 2), (0, 2, 3), (1, 3))):
        before = {n: double(v) for n, v in by_hand.shared(run).items()}
        old = products(by_hand.shared(run), 3.0)
        found = cohorts.play(run, t, present)["drift"]
        heads = [] if kept else [n for n in before if n.startswith("head/")]
        changes = {
            u.client.id: {n: m - old[n] for n, m in products(u.tensors, 3.0).items()} | changed(u, before, heads) for u in seen[t]
        }
        assert found == pytest.approx(spread(seen[t], changes, weighting == "uniform"), rel=1e-6)
        assert found > 0.1


@pytest.mark.parametrize(("slug", "sent"), [("fedsa-lora", "/A"), ("fedbf", "/bias")])
def test_drift_without_a_common_lora(slug: str, sent: str) -> None:
    run = tiny.federation(built(slug), sizes=SIZES, rounds=2)
    seen = by_hand.record(run)
    for t in range(2):
        before = {n: double(v) for n, v in by_hand.shared(run).items()}
        record = cohorts.play(run, t, (0, 1, 3))
        assert set(record) & {"aggregation_error", "effective_rank"} == set()
        names = [n for n in seen[t][0].tensors if n in before]
        assert any(n.endswith(sent) for n in names)
        changes = {u.client.id: changed(u, before, names) for u in seen[t]}
        assert record["drift"] == pytest.approx(spread(seen[t], changes, run.server.weighting == "uniform"), rel=1e-6)


def test_one_client_does_not_drift() -> None:
    run = tiny.federation(FEDIT, sizes=SIZES, rounds=1)
    assert "drift" not in cohorts.play(run, 0, (1,))


def test_clients_that_do_the_same_do_not_drift_and_opposite_ones_drift_without_end() -> None:
    one = Spread.none(torch.Size([3]))
    start, step = torch.zeros(3), torch.tensor([1.0, -2.0, 2.0])
    for weight in (1.0, 5.0):
        one.add(start, step, weight)
    assert one.parts() == (0.0, 9.0)
    two = Spread.none(torch.Size([3]))
    for sign in (1.0, -1.0):
        two.add(start, sign * step, 2.0)
    assert two.parts() == (9.0, 0.0)


def test_of_large_tensors_every_so_many_th_entry_stands_for_the_others() -> None:
    g = torch.Generator().manual_seed(0)
    shape = (3 * MOST // 64 + 5, 64)
    old = torch.zeros(shape)
    new = [torch.randn(shape, generator=g) + 1.0 for _ in range(3)]
    some = Spread.none(torch.Size(shape))
    for k, value in enumerate(new):
        some.add(old, value, k + 1.0)
    assert some.total.numel() <= MOST
    whole = np.stack([double(v) for v in new])
    p = np.array([1, 2, 3]) / 6
    mean = np.tensordot(p, whole, 1)
    wanted = sum(q * np.sum((m - mean) ** 2) for q, m in zip(p, whole, strict=True)), np.sum(mean**2)
    assert some.parts() == pytest.approx(wanted, rel=0.02)


def test_of_a_large_tensor_no_column_is_passed_over() -> None:
    # by steps of 4, the same quarter of the columns would be looked at in every row
    rows, columns = 2 * MOST // 64, 128
    some = Spread.none(torch.Size((rows, columns)))
    new = torch.zeros(rows, columns)
    new[:, 1] = 1.0
    for _ in range(2):
        some.add(torch.zeros(rows, columns), new, 1.0)
    assert some.total.numel() <= MOST
    assert some.parts()[1] == pytest.approx(rows, rel=0.02)


def test_tensors_of_which_clients_send_different_shapes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.federation.diagnostics.common", lambda adaptation: set())  # factors are tensors like any other
    rates = [{"rate": r} for r in (1.0, 0.5, 1.0, 0.5)]
    run = tiny.federation(HeteroFL(optim=OPTIM, steps=2, batch=3), sizes=SIZES, rounds=1, facts=rates)
    seen = by_hand.record(run)
    before = {n: double(v) for n, v in by_hand.shared(run).items()}
    found = cohorts.play(run, 0, (0, 1, 2))["drift"]
    changes = {u.client.id: changed(u, before, ["head/classifier/weight", "head/classifier/bias"]) for u in seen[0]}
    assert found == pytest.approx(spread(seen[0], changes, run.server.weighting == "uniform"), rel=1e-6)


@pytest.mark.parametrize("slug", ["fedit", "flora", "ffa-lora", "fedex-lora"])
def test_effective_rank_of_the_servers_change(slug: str) -> None:
    run = tiny.federation(built(slug), sizes=SIZES, rounds=2)
    by_hand.record(run)
    for t in range(2):
        old = whole(run)
        found = cohorts.play(run, t, (0, 1, 2))["effective_rank"]
        ranks = []
        for site, now in whole(run).items():
            q = np.linalg.svd(now - old[site], compute_uv=False)
            q = q[q > 1e-12 * q[0]] / np.sum(q)
            ranks.append(math.exp(-float(np.sum(q * np.log(q)))))
        assert found == pytest.approx(np.mean(ranks), rel=1e-6)
        assert found > 1.0


def whole(run: tiny.Federation) -> Matrices:
    """By what the server's model differs from the pretrained one, by site."""
    values = by_hand.shared(run)
    scale = run.server.adaptation["lora"][0].constants(run.server.sites("lora")[0])["scale"]
    found = products(values, scale)
    for name, value in run.server.shared.items():
        if isinstance(value, LowRank):
            site = name.split("/")[1]
            found[site] = found.get(site, 0.0) + double(value.dense())
    return found


def test_effective_rank_by_its_singular_values() -> None:
    def diagonal(*values: float) -> LowRank:
        b = torch.zeros(6, len(values), dtype=torch.float64)
        b[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
        return LowRank(b, torch.eye(len(values), 7, dtype=torch.float64))

    assert effective_rank([diagonal(2.0, 2.0, 2.0)]) == pytest.approx(3.0)
    assert effective_rank([diagonal(5.0, 0.0)]) == pytest.approx(1.0)
    assert effective_rank([diagonal(3.0, 1.0)]) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert effective_rank([diagonal(1.0, 1.0), diagonal(1.0), diagonal(0.0)]) == pytest.approx(1.5), (
        "a layer that stays counts not"
    )
    assert effective_rank([diagonal(0.0)]) is None
    assert effective_rank([diagonal(1.0), diagonal(math.nan)]) is None
    huge = LowRank(torch.eye(6, 2, dtype=torch.float64) * 1e200, torch.eye(2, 7, dtype=torch.float64) * 1e200)
    assert effective_rank([huge]) is effective_rank([diagonal(1e200) * 1e200]) is None, "finite factors of a product that is not"


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_a_square_is_that_of_the_matrix_whatever_there_is_more_of(rank: int) -> None:
    value = LowRank(torch.randn(7, rank, dtype=torch.float64), torch.randn(rank, 5, dtype=torch.float64), -0.7)
    by_hand.close(torch.tensor(square(value), dtype=torch.float64), (0.7 * value.B @ value.A).square().sum(), 1e-12 * 500)


@pytest.mark.parametrize("slug", ["fedtiny", "prunefl"])
def test_a_round_says_how_dense_the_model_is_that_a_server_has_pruned(slug: str) -> None:
    run = tiny.federation(small(slug), sizes=SIZES, rounds=2)
    record = run.simulation.round(0)
    assert record is not None
    masks = [v.mask.numpy() for v in run.server.shared.values() if isinstance(v, Masked)]
    if not masks:  # PruneFL begins with whole tensors
        assert slug == "prunefl"
        assert "density" not in record
        return
    fours = np.concatenate([m.reshape(-1, 4).sum(1) for m in masks if m.shape[-1] % 4 == 0])
    assert record["density"] == pytest.approx(sum(m.sum() for m in masks) / sum(m.size for m in masks))
    assert record["two_of_four"] == pytest.approx((fours <= 2).mean())
    assert 0 < record["density"] < 1


def test_methods_that_prune_nothing_have_no_density() -> None:
    record = tiny.federation(built("fedit"), sizes=SIZES, rounds=1).simulation.round(0)
    assert record is not None
    assert not {"density", "two_of_four"} & record.keys()


def test_densities_are_by_entries_and_not_by_tensors() -> None:
    thin = torch.tensor([[True, False, False, False]] * 2)
    wide, odd = torch.ones(6, 4, dtype=torch.bool), torch.tensor([[True, False, False]])
    assert density_of([thin, wide, odd]) == {"density": pytest.approx(27 / 35), "two_of_four": pytest.approx(8 / 32)}
    assert density_of([odd]) == {"density": pytest.approx(1 / 3), "two_of_four": None}
