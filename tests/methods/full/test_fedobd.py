"""FedOBD against its card: which blocks go up, what becomes of the others, and the epochs at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, Case, Sizes, Turn, factors_and_head, lora
from weft.contract import MethodInfo, Optim, Tune, Tuned
from weft.errors import UserError
from weft.federation.layout import named
from weft.methods import FedOBD
from weft.testing import laws
from weft.testing.compare import assert_same, equal, server_state
from weft.testing.sites import remote
from weft.testing.workers import scattered

LR = 0.3
SMALL = FedOBD(
    tune=Tune("lora", rank=2, alpha=6.0, at="q,ffn.in"),
    epochs=2.0,
    batch=4,
    tail=0,
    optim=Optim("sgd", lr=LR, schedule="cosine"),
)
SCALE = 3.0


class Averaged(Tuned):
    info: ClassVar[MethodInfo] = MethodInfo("averaged", "Averaged", "nobody", "full", "all")


test_laws = laws.over(
    FedOBD(rho=0.6, blocks="modules", tune=Tune("bias")), FedOBD(tune=Tune("bottleneck", reduction=8)), FedOBD(rho=0.99)
)


def block_of(name: str, blocks: str = "layers") -> str:
    """By the names of BERT: a layer with all in it, or a module."""
    _, site, _ = name.split("/")
    return site.split("layer.")[1].split(".")[0] if blocks == "layers" and "layer." in site else site


# rounds by hand -------------------------------------------------------------------------------------------------------


def walked(
    run: tiny.Federation, start: Mapping[str, Tensor], steps: Sequence[np.ndarray], done: int = 0, of: int | None = None
) -> dict[str, Tensor]:
    """SGD whose rate falls by half a cosine over ``of`` steps (all of these, if None), of which some are done."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in start.items()}
    opt = torch.optim.SGD(list(leaves.values()), LR)
    for i, rows in enumerate(steps):
        opt.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * (done + i) / (of or len(steps))))
        opt.zero_grad()
        F.cross_entropy(by_hand.logits(run, leaves, rows, SCALE), by_hand.labels(run, rows)).backward()
        opt.step()
    return {n: v.detach() for n, v in leaves.items()}


def chosen(start: Mapping[str, Tensor], end: Mapping[str, Tensor], rho: float, blocks: str) -> set[str]:
    """Names of what goes up: blocks by their mean difference, from the top, each that still fits."""
    groups: dict[str, list[str]] = {}
    for name in start:
        groups.setdefault(block_of(name, blocks), []).append(name)
    flat = {b: np.concatenate([(end[n] - start[n]).numpy().ravel() for n in names]) for b, names in groups.items()}
    left = (1 - rho) * sum(len(v) for v in flat.values())
    names: set[str] = set()
    for b in sorted(flat, key=lambda b: float(np.linalg.norm(flat[b])) / len(flat[b]), reverse=True):
        if len(flat[b]) <= left:
            left -= len(flat[b])
            names |= set(groups[b])
    return names


@pytest.mark.parametrize(("rho", "blocks", "tune"), [(0.6, "layers", "lora"), (0.5, "modules", "lora"), (0.4, "layers", "bias")])
def test_rounds_are_the_papers_with_a_part_of_the_clients_and_some_that_fail(rho: float, blocks: Any, tune: Any) -> None:
    method = replace(SMALL, rho=rho, blocks=blocks, tail=2, tune=replace(SMALL.tune, kind=tune))
    run = tiny.federation(method, rounds=6, participation=0.6, dropout=0.25, seed=4)
    seen = by_hand.record(run)
    kept, lost, unsent = set(), 0, 0
    for t in range(6):
        x = by_hand.shared(run)
        plan = {k: by_hand.steps_of(run, k, t) for k, c in enumerate(run.clients) if c.n}
        if t >= 4:  # an epoch
            plan = {k: [b.index[0] for b in run.pack([k], t).batches(1.0, None, 4)] for k in plan}
        record = run.simulation.round(t)
        assert record is not None
        there = [k for k in plan if run.clients[k].id in set(record["cohort"]) - set(record["lost"])]
        lost += len(record["lost"])
        total = {n: torch.zeros_like(v) for n, v in x.items()}
        for k in there:
            if t < 4:
                y = walked(run, x, plan[k])
                names = chosen(x, y, rho, blocks)
                kept.add(frozenset(block_of(n, blocks) for n in names))
            else:  # the first or the second half of one schedule
                assert len(record["cohort"]) == len(run.clients)
                each = len(plan[k])
                assert each == math.ceil(run.clients[k].n / 4)
                y = walked(run, x, plan[k], done=(t - 4) * each, of=2 * each)
                names = set(x)
            (sent,) = [u for u in seen[t] if u.client.id == run.clients[k].id]
            assert set(sent.tensors) == names
            for n in names:
                total[n] += run.clients[k].n * (y[n] - x[n])
        everybody = sum(run.clients[k].n for k in there)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, x[name] + total[name] / everybody)
            if not total[name].any():
                unsent += 1
                assert torch.equal(value, x[name])
    assert len(kept) > 1, "clients choose"
    assert lost


# the choice -----------------------------------------------------------------------------------------------------------


def kept_of(
    method: FedOBD, sizes: Mapping[str, int], moved: Mapping[str, float], blocks: Mapping[str, str] | None = None
) -> set[str]:
    return method._kept(blocks or {n: n for n in sizes}, {n: v**2 for n, v in moved.items()}, sizes)


@pytest.mark.parametrize(
    ("rho", "sizes", "moved", "kept"),
    [
        # the norm over the count and not over its root: 0.1, 0.09 and 0.05 (by the root it would be .32, .9 and .5)
        (0.5, {"a": 10, "b": 100, "c": 100}, {"a": 1.0, "b": 9.0, "c": 5.0}, {"a"}),
        (0.4, {"a": 10, "b": 100, "c": 100}, {"a": 1.0, "b": 9.0, "c": 5.0}, {"a", "b"}),
        # what does not fit is passed over, and the next is tried
        (0.5, {"a": 6, "b": 3, "c": 3}, {"a": 0.6, "b": 3.0, "c": 0.1}, {"b", "c"}),
        # all that fits exactly
        (0.5, {"a": 5, "b": 5}, {"a": 1.0, "b": 2.0}, {"b"}),
        (0.0, {"a": 5, "b": 5}, {"a": 1.0, "b": 2.0}, {"a", "b"}),
        # nobody has moved: in the order in which they come
        (0.5, {"b": 5, "a": 5}, {"a": 0.0, "b": 0.0}, {"b"}),
        # nothing fits: the best
        (0.9, {"a": 5, "b": 5}, {"a": 1.0, "b": 2.0}, {"b"}),
        (1.0, {"a": 5}, {"a": 0.0}, {"a"}),
    ],
)
def test_blocks_go_up_by_their_mean_difference_while_there_is_room(
    rho: float, sizes: dict[str, int], moved: dict[str, float], kept: set[str]
) -> None:
    assert kept_of(FedOBD(rho=rho), sizes, moved) == kept


def test_a_block_is_ranked_and_kept_as_a_whole() -> None:
    blocks = {"a1": "a", "b1": "b", "a2": "a", "b2": "b"}
    sizes, moved = {"a1": 1, "b1": 4, "a2": 4, "b2": 1}, {"a1": 3.0, "b1": 2.0, "a2": 4.0, "b2": 4.0}
    assert kept_of(FedOBD(rho=0.5), sizes, moved, blocks) == {"a1", "a2"}  # √(3² + 4²) against √(2² + 4²), over 5 each
    assert kept_of(FedOBD(rho=0.5), sizes, moved | {"b1": 5.0}, blocks) == {"b1", "b2"}


KINDS = {
    "lora": Tune("lora", rank=2, at="q,ffn.in"),
    "bottleneck": Tune("bottleneck", reduction=8),
    "bias": Tune("bias"),
    "head": Tune("head"),
}


@pytest.mark.parametrize("blocks", ["layers", "modules"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_in_one_block_that_is_a_layer_or_a_module(kind: str, blocks: Any) -> None:
    method = FedOBD(tune=KINDS[kind], blocks=blocks)
    run = tiny.federation(method)
    adaptation = method.adapt(run.bench.backbone, run.bench.task, run.clients[0].info(()))
    found = method._blocks(adaptation, run.bench.backbone)
    names = [n for n, _, _ in named(adaptation, run.bench.backbone)]
    assert list(found) == names
    together = {frozenset(n for n in names if found[n] == found[name]) for name in names}
    assert together == {frozenset(n for n in names if block_of(n, blocks) == block_of(name, blocks)) for name in names}
    if blocks == "layers" and kind != "head":
        assert len([group for group in together if any("layer." in n for n in group)]) == 3


def test_blocks_of_two_towers_are_not_taken_for_each_other() -> None:
    run = tiny.federation(FedOBD(tune=Tune("lora", rank=2, at="q,text.q", head=False)), "clip")
    adaptation = run.method.adapt(run.bench.backbone, run.bench.task, run.clients[0].info(()))
    found = FedOBD()._blocks(adaptation, run.bench.backbone)
    sides = {side: {b for n, b in found.items() if f"/{side}_model" in n} for side in ("text", "vision")}
    assert all(sides.values())
    assert not sides["text"] & sides["vision"]


@pytest.mark.parametrize(("rho", "blocks"), [(0.3, "layers"), (0.9, "modules"), (0.75, "modules")])
def test_no_update_is_larger_than_it_may_be_and_no_pair_is_split(rho: float, blocks: Any) -> None:
    run = tiny.federation(replace(SMALL, rho=rho, blocks=blocks), rounds=2)
    seen = by_hand.record(run)
    run.run()
    whole = by_hand.shared(run)
    d = sum(v.numel() for v in whole.values())
    assert all(seen)
    for u in [u for some in seen for u in some]:
        assert 0 < sum(v.numel() for v in u.tensors.values() if isinstance(v, Tensor)) <= (1 - rho) * d
        for name in whole:
            others = [n for n in whole if block_of(n, blocks) == block_of(name, blocks)]
            assert len({n in u.tensors for n in others}) == 1


# the mean -------------------------------------------------------------------------------------------------------------


def test_without_dropping_it_is_averaging_bit_for_bit() -> None:
    run = tiny.federation(replace(SMALL, rho=0.0), rounds=2, participation=0.5).run()
    plain = Averaged(tune=SMALL.tune, epochs=2.0, batch=4, optim=SMALL.optim)
    same = by_hand.shared(tiny.federation(plain, rounds=2, participation=0.5).run())
    assert all(torch.equal(v, same[n]) for n, v in by_hand.shared(run).items())


def test_a_block_that_few_have_sent_moves_by_the_mean_over_all_and_one_that_nobody_has_stays() -> None:
    run = tiny.federation(SMALL)
    before = by_hand.shared(run)
    blocks = sorted({block_of(n) for n in before})
    made = by_hand.invented(run, [9.0, 5.0, 2.0])
    senders = {blocks[0]: (0, 1, 2), blocks[1]: (1,), blocks[2]: (0, 2), blocks[3]: ()}
    updates = [
        by_hand.update(run, k, {n: v for n, v in u.tensors.items() if k in senders[block_of(n)]}, u.weight)
        for k, u in enumerate(made)
    ]
    run.method.aggregate(run.server, updates)
    for name, value in by_hand.shared(run).items():
        who = senders[block_of(name)]
        moves = [made[k].weight * (made[k].tensors[name] - before[name]) for k in who]  # type: ignore[operator]
        by_hand.close(value, before[name] + sum(moves, torch.zeros(())) / 16.0, 1e-12)
        assert bool(who) or torch.equal(value, before[name])


@pytest.mark.parametrize("tail", [0, 1])
def test_at_a_rate_of_zero_nothing_moves_and_the_first_blocks_go_up(tail: int) -> None:
    run = tiny.federation(replace(SMALL, tail=tail, optim=SMALL.optim.but(lr=0.0)), rounds=2)
    before = by_hand.shared(run)
    run.run()
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


# the second stage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "tail", "first"),
    [(110, 10, 100), (20, 10, 10), (10, 10, 5), (3, 10, 2), (2, 10, 1), (1, 10, 1), (8, 0, 8), (8, 3, 5)],
)
def test_the_last_exchanges_are_of_everybody_and_at_most_half(rounds: int, tail: int, first: int) -> None:
    run = tiny.federation(FedOBD(tail=tail), rounds=rounds)
    plans = [run.method.plan(run.server, t) for t in range(rounds + 1)]
    assert plans.pop() is None
    assert [p and (p.index, p.kind, p.who, p.extra) for p in plans] == [
        *((t, "train", "sample", {}) for t in range(first)),
        *((t, "tail", "all", {"part": t - first, "of": rounds - first}) for t in range(first, rounds)),
    ]


def test_whoever_trains_knows_where_in_the_schedule_it_is() -> None:
    method = replace(SMALL, tail=2)
    here = tiny.federation(method, rounds=4).run()
    for run in (remote(method, rounds=4)[0], scattered(method, rounds=4)[0]):
        assert_same(server_state(here), server_state(run.run()), 1e-9)
    once = tiny.federation(replace(method, optim=method.optim.but(schedule="constant")), rounds=4).run()
    assert not equal(server_state(here), server_state(once), 1e-3)


# settings -------------------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match=f"0 ≤ rho ≤ 1, not {wrong}"):
            FedOBD(rho=wrong)
    with pytest.raises(UserError, match=r'unknown blocks "layer".*Did you mean "layers"'):
        FedOBD(blocks="layer")  # type: ignore[arg-type]


def test_defaults_are_the_codes() -> None:
    method = FedOBD()
    # "5 local epochs; batch 64; SGD lr 0.1 (IMDB 0.01); ρ=0.3", "cosine lr"
    assert (method.epochs, method.batch, method.rho) == (5.0, 64, 0.3)
    assert method.optim == Optim("sgd", lr=0.1, schedule="cosine")
    # "second_phase_epoch = 10"
    assert method.tail == 10
    # "Weighted (data size) average"
    assert method.weighting == "examples"
    assert method.sums


# what other tests ask of this method --------------------------------------------------------------------------------------


def up(turn: Turn) -> Sizes:
    """Of three layers of 320 numbers and a head of 99, two layers and the head are what 70 % has room for; the last round is of
    the second stage."""
    return factors_and_head(turn) if turn.t == 2 else {"lora": lora(2, blocks=2), "head": HEAD}


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, up)
