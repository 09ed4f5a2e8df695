"""SLoRA against its card: entries at places that all know, the SVD of their change, and LoRA from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import BLOCK, HEAD, LAYERS, SITES, Case, Sizes, Turn, factors_and_head, lora
from weft.contract import Optim, UserError
from weft.federation.round import Round
from weft.federation.scope import Scope
from weft.methods import FedIT, SLoRA
from weft.tasks.kinds import GENERATION
from weft.testing.sites import remote
from weft.testing.watch import Snapshot

R, SCALE, D = 3, 2.0, 32
SGD, ADAMW = Optim("sgd", lr=0.3, schedule="constant"), Optim("adamw", lr=0.01, weight_decay=0.1, schedule="constant")
SMALL = SLoRA(rank=R, alpha=6.0, density=0.1, sparse_rounds=2, sites="q,v", batch=2, optim=SGD)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
N = 102  # of 1024 entries
Values = Mapping[str, Tensor]


def places(run: tiny.Federation, site: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Rows and columns of a layer's entries, and its shape."""
    rows, columns = run.server.shared[f"sparse/{site}/places"].long()  # type: ignore[union-attr]
    a, b = (run.server.shared[f"lora/{site}/{role}"] for role in "AB")
    return rows, columns, (b.shape[0], a.shape[1])


def mask(run: tiny.Federation, site: str) -> Tensor:
    rows, columns, shape = places(run, site)
    found = torch.zeros(shape, dtype=torch.float64)
    found[rows, columns] = 1.0
    return found


def change(run: tiny.Federation, site: str) -> Tensor:
    """Δ as the server holds it, written out."""
    rows, columns, shape = places(run, site)
    found = torch.zeros(shape, dtype=run.bench.dtype)
    for i, j, v in zip(rows, columns, run.server.shared[f"sparse/{site}/value"], strict=True):  # type: ignore[arg-type]
        found[i, j] = v
    return found


def product(run: tiny.Federation, site: str) -> Tensor:
    a, b = (run.server.shared[f"lora/{site}/{role}"] for role in "AB")
    return SCALE * b @ a  # type: ignore[operator]


def of_head(values: Values) -> dict[str, Tensor]:
    return {n: v for n, v in values.items() if n.startswith("head/")}


def optimizer(optim: Optim, leaves: list[Tensor]) -> torch.optim.Optimizer:
    if optim.kind == "sgd":
        return torch.optim.SGD(leaves, optim.lr)
    return torch.optim.AdamW(leaves, optim.lr, weight_decay=optim.weight_decay)


def descend(
    run: tiny.Federation, values: Values, masks: Values, steps: Sequence[np.ndarray], moving: Sequence[str]
) -> dict[str, Tensor]:
    """Whole dense matrices are trained, and put back outside of the mask after each step."""
    leaves = {n: v.clone().requires_grad_(n in moving) for n, v in values.items()}
    opt = optimizer(run.method.optim, [leaves[n] for n in moving])
    for rows in steps:
        opt.zero_grad()
        F.cross_entropy(by_hand.logits(run, leaves, rows, SCALE), by_hand.labels(run, rows)).backward()
        opt.step()
        with torch.no_grad():
            for name, kept in masks.items():
                leaves[name] *= kept
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("pack", [1, 3])
def test_four_rounds_by_hand_with_clients_that_are_away_one_of_them_over_the_switch(optim: Optim, pack: int) -> None:
    run = tiny.federation(replace(SMALL, optim=optim), pack=pack, **ABOUT)
    tolerance = 1e-9 if optim.kind == "sgd" else by_hand.ADAM
    rows, everywhere = run.clients[0].data.test, by_hand.sites(run)
    masks = {f"sparse/{s}/delta": mask(run, s) for s in everywhere}
    values = {**of_head(by_hand.shared(run)), **{n: torch.zeros_like(m) for n, m in masks.items()}}
    for t, present in enumerate(cohorts.ABSENT):
        ends = [descend(run, values, masks if t < 2 else {}, by_hand.steps_of(run, k, t), list(values)) for k in present]
        record = cohorts.play(run, t, present)
        assert record["kind"] == ("sparse", "switch", "lora", "lora")[t]
        total = sum(run.clients[k].n for k in present)
        values = {n: sum(run.clients[k].n / total * e[n] for k, e in zip(present, ends, strict=True)) for n in values}  # type: ignore[misc]
        if t == 1:
            for site in everywhere:
                u, s, vh = torch.linalg.svd(values.pop(f"sparse/{site}/delta"))
                values |= {f"lora/{site}/A": vh[:R], f"lora/{site}/B": u[:, :R] * s[:R] / SCALE}
        for name, value in of_head(values).items():
            by_hand.close(by_hand.shared(run)[name], value, tolerance)
        for site in everywhere:  # signs of singular vectors are nobody's
            if t < 1:
                by_hand.close(change(run, site), values[f"sparse/{site}/delta"], tolerance)
            else:
                by_hand.close(product(run, site), SCALE * values[f"lora/{site}/B"] @ values[f"lora/{site}/A"], tolerance)
        wanted = by_hand.logits(run, values, rows, SCALE).detach()
        by_hand.close(run.global_logits(rows, dtype=torch.float64), wanted, tolerance)


# stage 1 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_weights_outside_the_mask_are_the_pretrained_ones_to_the_last_bit(optim: Optim) -> None:
    """What the layers of a client compute of unit vectors are the columns of its weights."""
    run = tiny.federation(replace(SMALL, optim=optim), **ABOUT).run(1)
    pack = run.pack(t=1)
    list(run.method.train(pack))
    units = torch.eye(D, dtype=torch.float64)
    for site in by_hand.sites(run):
        module, outside = run.bench.backbone.module(site), mask(run, site) == 0
        assert int((~outside).sum()) == N
        frozen = module(units)  # type: ignore[operator]
        with pack.woven(None, 3, {"sparse": 1.0}):
            tuned = module(units.repeat(3, 1)).view(3, D, D)  # type: ignore[operator]
        for found in tuned:
            moved = (found != frozen).mT
            assert not bool(moved[outside].any())
            assert bool(moved.any())


def test_everybody_has_the_same_mask_and_it_is_the_runs_own() -> None:
    run, loop = remote(SMALL, **ABOUT)
    other = tiny.federation(SMALL, **ABOUT, seed=1)
    pack = run.pack()
    names = [f"sparse/{s}/places" for s in by_hand.sites(run)]
    for name in names:
        own = run.server.shared[name]
        assert isinstance(own, Tensor)
        assert all(torch.equal(site.copy[name], own) for site in loop.sites.values())  # type: ignore[arg-type]
        assert all(torch.equal(pack.value(k, name), own) for k in range(3))
        assert not torch.equal(own, other.server.shared[name])  # type: ignore[arg-type]
    assert len({tuple(run.server.shared[n].flatten().tolist()) for n in names}) == len(names)  # type: ignore[union-attr]
    before = {n: by_hand.shared(run)[n] for n in names}
    run.run()
    assert all(torch.equal(by_hand.shared(run)[n], v) for n, v in before.items())
    assert all(torch.equal(site.copy[n], v) for site in loop.sites.values() for n, v in before.items())  # type: ignore[arg-type]


@pytest.mark.parametrize(("density", "entries"), [(None, R * (D + D)), (0.1, N), (0.0123, 13), (1.0, D * D), (1e-9, 1)])
def test_stage_1_sends_as_many_values_as_there_are_entries_and_the_head(density: float | None, entries: int) -> None:
    run = tiny.federation(replace(SMALL, density=density), **ABOUT, precision="float32")
    sites, head = len(by_hand.sites(run)), 4 * sum(HEAD)
    ledger = run.simulation.setup.exchange.ledger
    sparse, low_rank = ({"sparse": 4 * sites * entries, "head": head}, {"lora": 4 * sites * R * (D + D), "head": head})

    def sent(t: int, way: Any) -> dict[str, int]:
        return {p: b for p, b in ledger.totals(round=t, phase="train", direction=way).parts.items() if p != "facts"}

    for t, (down, up) in enumerate([({}, sparse), (sparse, sparse), (low_rank, low_rank), (low_rank, low_rank)]):
        cohorts.play(run, t, (0, 1, 2))
        assert sent(t, "up") == {p: 3 * b for p, b in up.items()}
        assert sent(t, "down") == {p: 3 * b for p, b in down.items()}


def test_who_was_away_over_the_switch_gets_the_factors_and_none_of_the_entries() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    for t, present in enumerate(((0, 1, 2), (0, 2), (0, 2))):
        cohorts.play(run, t, present)
    for k in (1, 0):
        message = run.method.send(run.server, run.clients[k].info(()))
        assert {n.split("/")[0] for n in message.tensors} == {"lora", "head"}
    assert {n.split("/")[0] for n in run.server.stale(run.clients[1].info(())).tensors} == {"lora", "head"}


def test_lora_stands_still_in_stage_1_whatever_a_client_sends() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    before = by_hand.shared(run)
    run.server.round = Round(0, "sparse")
    run.method.aggregate(run.server, by_hand.invented(run, [1.0, 2.0]))
    for name, value in by_hand.shared(run).items():
        assert torch.equal(value, before[name]) == (name.startswith("lora/") or name.endswith("/places"))
    run.server.round = Round(3, "lora")
    before = by_hand.shared(run)
    run.method.aggregate(run.server, by_hand.invented(run, [2.0, 1.0]))
    for name, value in by_hand.shared(run).items():
        assert torch.equal(value, before[name]) == name.startswith("sparse/")


# the switch ---------------------------------------------------------------------------------------------------------------


def switched(run: tiny.Federation) -> None:
    """The end of a round of the switch in which nobody sends anything."""
    run.server.round = Round(1, "switch")
    run.server.clock += 1
    run.method.aggregate(run.server, [])


def test_the_factors_are_the_best_of_their_rank_and_the_weights_are_back() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    deltas = {s: change(run, s) for s in by_hand.sites(run)}
    switched(run)
    for site, delta in deltas.items():
        d = torch.linalg.svdvals(delta)
        assert d[R] > 1e-6
        by_hand.close((product(run, site) - delta).square().sum(), d[R:].square().sum(), 1e-12)
        a = run.server.shared[f"lora/{site}/A"]
        by_hand.close(a @ a.mT, torch.eye(R, dtype=torch.float64), 1e-12)  # type: ignore[union-attr, operator]
        assert not bool(change(run, site).any())
    rows = run.clients[0].data.test
    values = {n: v for n, v in by_hand.shared(run).items() if not n.startswith("sparse/")}
    wanted = by_hand.logits(run, values, rows, SCALE).detach()
    by_hand.close(run.global_logits(rows, dtype=torch.float64), wanted, 1e-12)


def test_a_change_of_no_higher_rank_is_kept_whole_and_the_rest_of_the_factors_is_as_drawn() -> None:
    run = tiny.federation(replace(SMALL, density=2 / 1024), **ABOUT).run(1)
    rows, drawn = run.clients[0].data.test, by_hand.shared(run)
    before = run.global_logits(rows, dtype=torch.float64)
    frozen = by_hand.logits(run, of_head(drawn), rows)
    assert float((before - frozen).abs().max()) > 1e-6
    switched(run)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), before, 1e-9)
    for site in by_hand.sites(run):
        a, b = (run.server.shared[f"lora/{site}/{role}"] for role in "AB")
        assert torch.equal(a[2:], drawn[f"lora/{site}/A"][2:])  # type: ignore[index]
        assert not bool(b[:, 2:].any())  # type: ignore[index, call-overload]


def test_a_layer_in_which_nothing_was_learnt_starts_as_lora_does() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    first, *others = by_hand.sites(run)
    run.server.write(f"sparse/{first}/value", torch.zeros(N, dtype=torch.float64))
    drawn = by_hand.shared(run)
    switched(run)
    found, sent = by_hand.shared(run), run.method.send(run.server, run.clients[0].info(())).tensors
    for site in (first, *others):
        for role in "AB":
            name = f"lora/{site}/{role}"
            assert torch.equal(found[name], drawn[name]) == (site == first)
            assert (name in sent) == (site != first)


def test_without_learning_in_stage_1_stage_2_is_fedit_to_the_last_bit() -> None:
    """Nobody has rows in the first two rounds."""
    plain = FedIT(rank=R, alpha=6.0, sites="q,v", batch=2, optim=SGD)
    run, other = (tiny.federation(m, **ABOUT) for m in (SMALL, plain))
    for t in range(2):
        cohorts.play(run, t, ())
    for t in range(2, 4):
        cohorts.play(run, t, (0, 2))
        cohorts.play(other, t, (0, 2))
    found = by_hand.shared(run)
    assert all(torch.equal(found[n], v) for n, v in by_hand.shared(other).items())
    assert not any(bool(found[f"sparse/{s}/value"].any()) for s in by_hand.sites(run))


@pytest.mark.parametrize(("none", "rounds"), [(0, 4), (2, 1)])
def test_without_a_stage_1_it_is_fedit_to_the_last_bit(none: int, rounds: int) -> None:
    plain = FedIT(rank=R, alpha=6.0, sites="q,v", batch=2, optim=SGD)
    run, other = (tiny.federation(m, **ABOUT | {"rounds": rounds}) for m in (replace(SMALL, sparse_rounds=none), plain))
    rows = run.clients[0].data.test
    assert ("sparse" in run.server.adaptation) == (none > 0)
    for t, present in enumerate(cohorts.ABSENT[:rounds]):
        assert cohorts.play(run, t, present)["kind"] == "lora"
        cohorts.play(other, t, present)
        found = by_hand.shared(run)
        assert all(torch.equal(found[n], v) for n, v in by_hand.shared(other).items())
        assert torch.equal(run.global_logits(rows), other.global_logits(rows))


def test_sites_that_still_hold_entries_are_scored_with_the_factors() -> None:
    run, loop = remote(SMALL, **ABOUT)
    here = tiny.federation(SMALL, **ABOUT)
    for t in range(3):
        run.simulation.round(t)
        here.simulation.round(t)
        found, wanted = ({e.metric: e.value for e in r.simulation.evaluate(t) if e.people == "own test"} for r in (run, here))
        assert found.keys() == wanted.keys()
        assert found == pytest.approx(wanted, rel=1e-9)
    name = f"sparse/{by_hand.sites(run)[0]}/value"
    assert all(bool(site.copy[name].any()) for site in loop.sites.values())  # type: ignore[union-attr]


# rounds -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "kinds"), [(1, "l"), (2, "sl"), (3, "sll"), (4, "-sll"), (7, "--sllll"), (12, "----slllllll")]
)
def test_stage_1_is_at_most_half_of_the_run(rounds: int, kinds: str) -> None:
    run = tiny.federation(SLoRA(rank=2), **ABOUT | {"rounds": rounds})
    plans = [run.method.plan(run.server, t) for t in range(rounds + 1)]
    assert plans.pop() is None
    words = {"-": "sparse", "s": "switch", "l": "lora"}
    assert [p.kind for p in plans if p] == [words[k] for k in kinds]


def test_a_switch_that_did_not_count_is_made_in_the_next_round() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    before = Snapshot.of(run.server)
    assert run.method.plan(run.server, 1) == Round(1, "switch")
    run.simulation.round(1)
    assert run.method.plan(run.server, 2) == Round(2, "lora")
    run.server.roll_back(before.tensors, before.plain)
    assert run.method.plan(run.server, 2) == Round(2, "switch")
    assert all(not bool(run.server.shared[f"lora/{s}/B"].any()) for s in by_hand.sites(run))  # type: ignore[union-attr]
    run.simulation.round(2)
    assert all(bool(run.server.shared[f"lora/{s}/B"].any()) for s in by_hand.sites(run))  # type: ignore[union-attr]
    assert run.method.plan(run.server, 3) == Round(3, "lora")


def test_a_language_model_is_tuned_in_both_stages() -> None:
    """Its keys and values have fewer heads, so that a layer's matrix is not square."""
    run = tiny.federation(SMALL, "llama", task=GENERATION, sizes=(6, 5, 7), rounds=4)
    scores = [run.simulation.evaluate(0)[0].value]
    cohorts.play(run, 0, (0, 1, 2))
    scores.append(run.simulation.evaluate(0)[0].value)
    deltas = {s: change(run, s) for s in by_hand.sites(run)}
    assert {tuple(d.shape) for d in deltas.values()} == {(32, 32), (16, 32)}
    switched(run)
    scores.append(run.simulation.evaluate(1)[0].value)
    for site, delta in deltas.items():
        u, d, vh = torch.linalg.svd(delta, full_matrices=False)
        assert d[0] > 1e-6
        by_hand.close(product(run, site), (u[:, :R] * d[:R]) @ vh[:R], 1e-12)
    for t, present in ((2, (1, 2)), (3, (0, 1))):
        before = {s: product(run, s) for s in by_hand.sites(run)}
        assert cohorts.play(run, t, present)["kind"] == "lora"
        assert not any(torch.equal(product(run, s), v) for s, v in before.items())
        scores.append(run.simulation.evaluate(t)[0].value)
    assert np.isfinite(scores).all()
    assert len(set(scores)) == 5


# what it sends, and what it is set to -------------------------------------------------------------------------------------


def test_defaults_and_what_roberta_base_sends() -> None:
    method, backbone = SLoRA(), by_hand.roberta_base()
    sent = by_hand.elements(method, backbone, Scope.UP)
    assert sent["sparse"] == sent["lora"] == 12 * 2 * 8 * (768 + 768)
    assert round(sent["sparse"] / (12 * 2 * 768 * 768), 3) == 0.021  # of the weights that are tuned
    assert by_hand.elements(replace(method, density=0.01), backbone, Scope.UP)["sparse"] == 12 * 2 * 5898
    assert (method.rank, method.alpha, method.density, method.sparse_rounds) == (8, 16.0, None, 5)
    assert (method.sites, method.epochs, method.weighting) == ("q,v", 1.0, "examples")
    assert method.optim == Optim("adamw", lr=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"density": 0.0}, "density > 0"), ({"density": 1.5}, "density ≤ 1"), ({"sparse_rounds": -1}, "sparse_rounds ≥ 0")],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        SLoRA(**settings)
    assert sentence.split()[0] in str(caught.value)
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------


def up(turn: Turn) -> Sizes:
    """The first of three rounds is stage 1, which sends as many values as LoRA of rank 2 has."""
    return factors_and_head(turn) if turn.t else {"sparse": [2 * (d_in + d_out) for d_in, d_out in BLOCK] * LAYERS, "head": HEAD}


def up_of_density(turn: Turn) -> Sizes:
    return factors_and_head(turn) if turn.t else {"sparse": [102, 205] * LAYERS, "head": HEAD}


BYTES = Case({"rank": 2, **SITES}, factors_and_head, up)
BYTES_VARIANTS = {
    "a tenth of the entries": Case({"rank": 2, "density": 0.1, **SITES}, factors_and_head, up_of_density),
    "no stage 1": Case({"rank": 2, "sparse_rounds": 0, **SITES}, factors_and_head, lambda turn: {"lora": lora(2), "head": HEAD}),
}
