"""PruneFL against its card and a loop in plain PyTorch: masks, gains, adjustments, and what travels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, Case, Sizes, Turn
from weft.contract import Masked, Optim, Tune
from weft.methods import FedAvg, PruneFL
from weft.testing import laws

LR = 0.2
ONE = "*.layer.1.intermediate.dense.*,*.layer.2.output.dense.*"
SMALL = PruneFL(
    tune=Tune("weights", weights=ONE),
    every=2,
    initial=0,
    decrease=0.4,
    communication=0.3,
    computation=0.1,
    constant=50.0,
    steps=3,
    batch=4,
    optim=Optim("sgd", lr=LR, schedule="constant"),
)
PRUNED = ["weights/bert.encoder.layer.1.intermediate.dense/weight", "weights/bert.encoder.layer.2.output.dense/weight"]
TINY = {"initial": 0, "every": 2, "constant": 0.0, "tune.kind": "bottleneck", "tune.reduction": 8}

FIRST = PruneFL(tune=Tune("bottleneck", reduction=8), initial=4, every=2, initial_batches=2, constant=0.0)


@pytest.mark.parametrize("law", [law for law in laws.LAWS if law != "codecs"])  # at a rate of zero it prunes as well
def test_laws_with_a_first_stage(law: str) -> None:
    laws.check(FIRST, law)


# by hand ----------------------------------------------------------------------------------------------------------------


def slopes(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    loss = F.cross_entropy(by_hand.logits(run, leaves, rows), by_hand.labels(run, rows))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def walked(
    run: tiny.Federation, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], steps: list[np.ndarray]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A client's values after its steps, and the sum of its gradients."""
    now, total = dict(values), {n: torch.zeros_like(v) for n, v in values.items()}
    for rows in steps:
        for name, slope in slopes(run, now, rows).items():
            total[name] += slope
            now[name] = now[name] - LR * slope * masks.get(name, 1.0)
    return now, total


def chosen(method: PruneFL, values: Any, masks: Any, gains: Any, share: float) -> dict[str, Tensor]:
    """An adjustment, entry by entry."""
    each = method.communication + (method.steps or 1) * method.computation
    kept: dict[str, np.ndarray] = {}
    for n, mask in masks.items():
        living = np.flatnonzero(mask.numpy().ravel())
        order = living[np.argsort(values[n].abs().numpy().ravel()[living], kind="stable")]
        kept[n] = mask.numpy().ravel().copy()
        kept[n][order[: int(share * len(living))]] = False
    gain = sum(float(g.numpy().ravel()[kept[n]].sum()) if n in kept else float(g.sum()) for n, g in gains.items())
    time = method.constant + each * sum(int(m.sum()) for m in kept.values())
    rest = [(float(gains[n].numpy().ravel()[i]), n, i) for n, m in kept.items() for i in np.flatnonzero(~m)]
    for g, n, i in sorted(rest, key=lambda r: -r[0]):
        if g / each <= gain / time:
            break
        kept[n][i] = True
        gain, time = gain + g, time + each
    return {n: torch.from_numpy(m).view(masks[n].shape) for n, m in kept.items()}


def held(run: tiny.Federation) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The server's values in full, and their masks."""
    values = {n: (v.dense() if isinstance(v, Masked) else v).clone() for n, v in run.server.shared.items()}
    masks = {n: v.mask.clone() for n, v in run.server.shared.items() if isinstance(v, Masked)}
    return values, masks


def test_rounds_are_the_papers_with_a_part_of_the_clients_and_some_that_fail() -> None:
    run = tiny.federation(SMALL, rounds=7, participation=0.6, dropout=0.3, seed=6)
    squares = [{n: torch.zeros_like(v) for n, v in held(run)[0].items()} for _ in run.clients]
    pruned, came_back, absent = 0, 0, 0
    for t in range(7):
        values, masks = held(run)
        assert list(masks) == (PRUNED if t > 2 else [])
        steps = [by_hand.steps_of(run, k, t) if c.n else [] for k, c in enumerate(run.clients)]
        record = run.simulation.round(t)
        assert record is not None
        there = [k for k, c in enumerate(run.clients) if c.id in set(record["cohort"]) - set(record["lost"]) and c.n]
        absent += len(there) < sum(c.n > 0 for c in run.clients)
        sums = {n: torch.zeros_like(v) for n, v in values.items()}
        weight = 0
        gains = {n: torch.zeros_like(v) for n, v in values.items()}
        for k in there:
            rows = sum(map(len, steps[k]))
            now, total = walked(run, values, masks, steps[k])
            weight += 1
            for n in values:
                sums[n] += now[n]
                squares[k][n] += rows * total[n] ** 2
                if t in (2, 4, 6):
                    gains[n] += squares[k][n] / len(there)
                    squares[k][n] = torch.zeros_like(total[n])
        wanted = {n: v / weight for n, v in sums.items()}
        if t in (2, 4, 6):
            before = {n: masks.get(n, torch.ones_like(wanted[n], dtype=torch.bool)) for n in PRUNED}
            after = chosen(SMALL, wanted, before, gains, 0.4 * 0.5 ** (t / 10000))
            pruned += sum(int((before[n] & ~after[n]).sum()) for n in PRUNED)
            came_back += sum(int((after[n] & ~before[n]).sum()) for n in PRUNED)
            masks = after
        for n, value in held(run)[0].items():
            by_hand.close(value, wanted[n] * masks.get(n, 1.0))
        assert {n: m.tolist() for n, m in held(run)[1].items()} == {n: m.tolist() for n, m in masks.items()}
    assert min(pruned, came_back, absent) > 0, "the seed must show all that can happen"


def test_the_first_stage_is_one_clients_own() -> None:
    method = replace(SMALL, initial=7, initial_batches=2, every=3)
    run = tiny.federation(method, sizes=(3, 9, 5), rounds=2)
    pack = run.pack([1], 0)
    batches = [b.index[0] for b in pack.batches(steps=2, size=4)]
    values = held(run)[0]
    masks = {n: torch.ones_like(values[n], dtype=torch.bool) for n in PRUNED}
    squares = {n: torch.zeros_like(v) for n, v in values.items()}
    for step in range(1, 8):
        for n, slope in slopes(run, values, batches[step % 2]).items():
            squares[n] += slope**2
            values[n] = values[n] - LR * slope * masks.get(n, 1.0)
        if step in (3, 6, 7):
            masks = chosen(method, values, masks, squares, 0.4)
            values = {n: v * masks.get(n, 1.0) for n, v in values.items()}
            squares = {n: torch.zeros_like(v) for n, v in values.items()}
    record = run.simulation.round(0)
    assert record is not None
    assert record["cohort"] == [run.clients[1].id]
    found = held(run)
    for n, value in values.items():
        by_hand.close(found[0][n], value)
    assert all(torch.equal(found[1][n], masks[n]) for n in PRUNED)
    assert sum(int((~m).sum()) for m in masks.values()) > 0


def test_the_first_stage_ends_when_the_density_stands_still() -> None:
    run = tiny.federation(replace(SMALL, initial=10**6, every=1, decrease=0.0), sizes=(9,), rounds=1)
    pack = run.pack([0], 0)
    list(run.method.train(pack))
    assert pack.work[run.clients[0].id].steps == 5


# what the paper promises --------------------------------------------------------------------------------------------------


def test_with_nothing_let_go_it_is_federated_averaging() -> None:
    run = tiny.federation(replace(SMALL, decrease=0.0, every=1), rounds=4)
    plain = tiny.federation(FedAvg(tune=SMALL.tune, steps=3, batch=4, optim=SMALL.optim, weighting="uniform"), rounds=4)
    for of in (run, plain):
        of.run()
    assert list(held(run)[1]) == PRUNED
    assert all(bool(m.all()) for m in held(run)[1].values())
    for n, value in held(plain)[0].items():
        by_hand.close(held(run)[0][n], value, 1e-12)


def test_everything_comes_back_where_entries_take_no_part_of_the_time() -> None:
    run = tiny.federation(replace(SMALL, constant=1e12), rounds=4)
    run.run()
    assert all(bool(m.all()) for m in held(run)[1].values())


def test_no_more_is_left_than_the_density_allows() -> None:
    run = tiny.federation(replace(SMALL, constant=1e12, max_density=0.7), rounds=4)
    run.run()
    masks = held(run)[1]
    assert sum(int(m.sum()) for m in masks.values()) == int(0.7 * sum(m.numel() for m in masks.values()))


def test_what_is_pruned_is_zero_for_everybody() -> None:
    run = tiny.federation(replace(SMALL, constant=0.0), rounds=4)
    run.run()
    masks = held(run)[1]
    assert min(int((~m).sum()) for m in masks.values()) > 0
    for k, client in enumerate(run.clients):
        if not client.n:
            continue
        pack = run.pack([k], 4)
        list(run.method.train(pack))
        for n, mask in masks.items():
            assert not bool(pack.value(0, n)[~mask].any())
            assert bool(pack.value(0, n)[mask].any())


def test_entries_that_come_back_begin_at_zero() -> None:
    run = tiny.federation(SMALL, rounds=1)
    name = PRUNED[0]
    value = run.server.shared[name]
    assert isinstance(value, Tensor)
    mask = torch.arange(value.numel()).view(value.shape) % 2 == 0
    run.server.write(name, Masked.of(value, mask))
    SMALL.write_masks(run.server, {name: torch.ones_like(mask)})
    after = run.server.shared[name]
    assert isinstance(after, Masked)
    assert torch.equal(after.dense(), value * mask)


def test_tables_of_words_vectors_and_the_head_are_not_pruned() -> None:
    run = tiny.federation(replace(SMALL, tune=Tune("weights")), rounds=1)
    names = SMALL.prunable(run.server.adaptation, run.bench.backbone)
    assert not any("embeddings" in n or n.startswith("head") or n.endswith("bias") or "LayerNorm" in n for n in names)
    assert len([n for n in names if ".layer.0." in n]) == 6
    assert names[PRUNED[0]] == 1


def test_clients_add_up_gains_until_they_are_asked_for_them() -> None:
    run = tiny.federation(replace(SMALL, every=3), sizes=(8,), rounds=4)
    seen = []
    for t in range(4):
        run.simulation.round(t)
        seen.append(math.fsum(float(v.sum()) for n, v in by_hand.kept(run)[run.clients[0].id].items() if n.startswith("seen/")))
    assert 0 < seen[0] < seen[1] < seen[2]
    assert seen[3] == 0


# bytes ----------------------------------------------------------------------------------------------------------------------

MATRICES, VECTORS = [32 * 4, 4 * 32] * 3, [4, 32] * 3
EVERYTHING = {"bottleneck": MATRICES + VECTORS, "head": HEAD}


def gains_too(turn: Turn) -> Sizes:
    return {**EVERYTHING, "gain": [*MATRICES, *VECTORS, *HEAD]} if turn.t == 2 else dict(EVERYTHING)


BYTES = Case(TINY, lambda turn: dict(EVERYTHING), gains_too)
