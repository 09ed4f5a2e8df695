"""FedTiny against its card and a loop in plain PyTorch: candidates, masks of one density, entries that change places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, Bits, Case, Sizes, Turn
from weft.contract import Masked, Optim, Tune
from weft.errors import UserError
from weft.methods import FedAvg, FedTiny
from weft.methods.selective.fedtiny import level
from weft.testing import laws

LR = 0.2
NAMES = ["weights/bert.encoder.layer.1.intermediate.dense/weight", "weights/bert.encoder.layer.2.output.dense/weight"]
SMALL = FedTiny(
    tune=Tune("weights", weights="*.layer.1.intermediate.dense.*,*.layer.2.output.dense.*"),
    density=0.3,
    layers="uniform",
    candidates=1,
    every=2,
    end=5,
    alpha=0.5,
    epochs=1.0,
    batch=4,
    optim=Optim("sgd", lr=LR, schedule="constant"),
)
TINY = {"candidates": 1, "every": 2, "density": 0.5, "tune.kind": "bottleneck", "tune.reduction": 8}
MOVING = FedTiny(tune=Tune("bottleneck", reduction=8), candidates=1, every=1, density=0.5, alpha=0.5, batch=4)


@pytest.mark.parametrize("law", [law for law in laws.LAWS if law != "codecs"])  # at a rate of zero entries change places too
@pytest.mark.parametrize("grow", ["all", "block"])
def test_laws_while_entries_change_places(grow: str, law: str) -> None:
    laws.check(replace(MOVING, grow=grow), law)


@pytest.mark.parametrize("law", ["pack", "return", "sums", "sites", "scores", "ledger", "resuming", "loading", "learning"])
def test_laws_with_candidates(law: str) -> None:
    laws.check(replace(MOVING, candidates=3), law)


# by hand ----------------------------------------------------------------------------------------------------------------


def slopes(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    loss = F.cross_entropy(by_hand.logits(run, leaves, rows), by_hand.labels(run, rows))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def walked(
    run: tiny.Federation, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], steps: list[np.ndarray]
) -> dict[str, Tensor]:
    now = dict(values)
    for rows in steps:
        now = {n: now[n] - LR * s * masks.get(n, 1.0) for n, s in slopes(run, now, rows).items()}
    return now


def held(run: tiny.Federation) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The server's values in full, and their masks."""
    values = {n: (v.dense() if isinstance(v, Masked) else v).clone() for n, v in run.server.shared.items()}
    return values, {n: v.mask.clone() for n, v in run.server.shared.items() if isinstance(v, Masked)}


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the largest ones, of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


def swapped(value: Tensor, mask: Tensor, gradient: Tensor, k: int) -> Tensor:
    now, w, g = mask.numpy().ravel().copy(), value.abs().numpy().ravel(), gradient.abs().numpy().ravel()
    living = np.flatnonzero(now)
    now[living[np.argsort(w[living], kind="stable")[:k]]] = False
    empty = np.flatnonzero(~now)
    now[empty[top(g[empty], k)]] = True
    return torch.from_numpy(now).view(mask.shape)


@pytest.mark.parametrize("grow", ["all", "block"])
@pytest.mark.parametrize("gradient", ["batch", "epoch"])
def test_rounds_are_the_papers_with_a_part_of_the_clients_and_some_that_fail(grow: str, gradient: str) -> None:
    method = replace(SMALL, grow=grow, gradient=gradient)
    run = tiny.federation(method, rounds=7, participation=0.6, dropout=0.3, seed=6)
    first = held(run)[1]
    assert list(first) == NAMES
    changed, absent = [], 0
    for t in range(7):
        values, masks = held(run)
        steps = [by_hand.steps_of(run, k, t) if c.n else [] for k, c in enumerate(run.clients)]
        seen = {}
        for k, client in enumerate(run.clients):
            if client.n and t in (2, 4):
                pack = run.pack([k], t)
                some = 1 if gradient == "batch" else None
                seen[k] = [b.index[0] for b in pack.batches(1.0, some, 4, "gradients")]
        record = run.simulation.round(t)
        assert record is not None
        there = [k for k, c in enumerate(run.clients) if c.id in set(record["cohort"]) - set(record["lost"]) and c.n]
        absent += len(there) < sum(c.n > 0 for c in run.clients)
        sums = {n: torch.zeros_like(v) for n, v in values.items()}
        gradients = {n: torch.zeros_like(v) for n, v in values.items()}
        total = sum(run.clients[k].n for k in there)
        layer = {2: 1, 4: 0}.get(t)  # from the last block on
        adjusted = NAMES if grow == "all" else [NAMES[layer]] if layer is not None else []
        for k in there:
            now = walked(run, values, masks, steps[k])
            mine = {n: torch.zeros_like(v) for n, v in values.items()}
            count = sum(map(len, seen.get(k, [])))
            for rows in seen.get(k, []):
                for n, s in slopes(run, now, rows).items():
                    mine[n] += len(rows) / count * s
            for n in values:
                sums[n] += run.clients[k].n / total * now[n]
            for n in adjusted:
                if grow == "block":
                    k_of = math.floor(0.25 * (1 + math.cos(math.pi * t / 5)) * int(masks[n].sum()))
                    flat = (mine[n] * ~masks[n]).abs().numpy().ravel()
                    sent = np.zeros(flat.size, dtype=bool)
                    sent[top(flat, k_of)] = True
                    mine[n] = mine[n] * torch.from_numpy(sent).view(mine[n].shape)
                gradients[n] += run.clients[k].n / total * mine[n]
        if t in (2, 4):
            for n in adjusted:
                k_of = math.floor(0.25 * (1 + math.cos(math.pi * t / 5)) * int(masks[n].sum()))
                masks[n] = swapped(sums[n], masks[n], gradients[n], k_of)
        for n, value in held(run)[0].items():
            by_hand.close(value, sums[n] * masks.get(n, 1.0))
        after = held(run)[1]
        assert all(torch.equal(after[n], masks[n]) for n in NAMES)
        changed.append(sum(int((after[n] != first[n]).sum()) for n in NAMES))
    assert changed[1] == 0 < changed[2] != changed[6]
    assert absent > 0, "the seed must show all that can happen"


def test_the_candidate_of_the_smallest_mean_loss_is_taken() -> None:
    method = replace(SMALL, candidates=4, spread=1.0, density=0.15, layers="erk")
    run = tiny.federation(method, rounds=2, sizes=(7, 3, 5), seed=2)
    values = {n: v for n, v in held(run)[0].items() if n in NAMES}
    masks = [method.masks(values, run.server.seed, c) for c in range(4)]
    rest = {n: v for n, v in held(run)[0].items() if n not in NAMES}
    losses = []
    for mask in masks:
        model = {n: v * mask[n] for n, v in values.items()} | rest
        each = [
            c.n * F.cross_entropy(by_hand.logits(run, model, c.data.train), by_hand.labels(run, c.data.train))
            for c in run.clients
        ]
        losses.append(float(sum(each)) / sum(c.n for c in run.clients))
    best = int(np.argmin(losses))
    assert best != 0, "the seed must show that it is a choice"
    run.simulation.round(0)
    found, taken = held(run)
    assert all(torch.equal(taken[n], masks[best][n]) for n in NAMES)
    for n, value in values.items():
        by_hand.close(found[n], value * masks[best][n], 0.0)


# what the paper promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["erk", "er", "uniform"])
def test_every_candidate_keeps_the_density(layers: str) -> None:
    method = replace(SMALL, layers=layers, spread=0.8, density=0.4)
    shapes = {"a": (40, 10), "b": (6, 6), "c": (30, 50)}
    values = {n: torch.randn(s) for n, s in shapes.items()}
    seen = []
    for c in range(6):
        masks = method.masks(values, 3, c)
        assert sum(int(m.sum()) for m in masks.values()) == pytest.approx(0.4 * (400 + 36 + 1500), abs=len(shapes))
        for n, mask in masks.items():
            if not bool(mask.all()):
                assert float(values[n].abs()[mask].min()) >= float(values[n].abs()[~mask].max())
        seen.append(tuple(int(m.sum()) for m in masks.values()))
    assert len(set(seen)) == 6
    assert seen == [tuple(int(m.sum()) for m in method.masks(values, 3, c).values()) for c in range(6)]


def test_densities_are_brought_to_a_level_without_any_above_one() -> None:
    shapes = {"a": (10, 10), "b": (10, 30)}
    found = level({"a": 0.9, "b": 0.1}, shapes, 0.5)
    assert found == pytest.approx({"a": 1.0, "b": 100 / 300})
    assert level({"a": 0.2, "b": 0.2}, shapes, 1.0) == {"a": 1.0, "b": 1.0}


def test_as_many_entries_are_left_in_each_tensor_as_before() -> None:
    run = tiny.federation(replace(SMALL, every=1, end=3), rounds=6)
    seen = [held(run)[1]]
    for _ in range(6):
        run.simulation.round(len(seen) - 1)
        seen.append(held(run)[1])
    for n in NAMES:
        assert {int(masks[n].sum()) for masks in seen} == {round(0.3 * seen[0][n].numel())}
        changes = [not torch.equal(a[n], b[n]) for a, b in itertools.pairwise(seen)]
        assert changes == [False, True, True, False, False, False]


def test_with_every_entry_it_is_federated_averaging() -> None:
    run = tiny.federation(replace(SMALL, density=1.0, every=1), rounds=3)
    plain = tiny.federation(FedAvg(tune=SMALL.tune, epochs=1.0, batch=4, optim=SMALL.optim), rounds=3)
    for of in (run, plain):
        of.run()
    for n, value in held(plain)[0].items():
        by_hand.close(held(run)[0][n], value, 1e-12)


def test_what_is_pruned_is_zero_at_the_server() -> None:
    run = tiny.federation(replace(SMALL, every=1), rounds=3).run()
    assert all(not bool(held(run)[0][n][~mask].any()) for n, mask in held(run)[1].items())


# bytes ----------------------------------------------------------------------------------------------------------------------

COUNT, SIZE = 64, 128  # of the entries of each matrix: half of them, by `uniform`
VECTORS = [4, 32] * 3
ENTRIES = [COUNT] * 6
PLACES = [Bits(SIZE)] * 6


def sent(turn: Turn) -> Sizes:
    """Entries alone, as the server has the masks; gradients of all of them in the rounds of an adjustment."""
    own: Sizes = {"bottleneck": [*ENTRIES, *VECTORS], "head": HEAD}
    return {**own, "gradient": [SIZE] * 6} if turn.t else own


def largest_alone(turn: Turn) -> Sizes:
    """The k largest entries of one block's gradients, each with its places."""
    own = sent(turn)
    k = math.floor(0.25 * (1 + math.cos(math.pi * turn.t / 100)) * COUNT)
    return {**own, "gradient": [k, Bits(SIZE)] * 2} if turn.t else own


def told(turn: Turn) -> Sizes:
    """Entries; places where these are others than before."""
    new = PLACES if turn.t == 2 else []
    return {"bottleneck": [*ENTRIES, *VECTORS, *new], "head": HEAD}


FIXED = {**TINY, "every": 1, "layers": "uniform", "alpha": 0.5}
BYTES = Case(FIXED, told, sent, first=lambda turn: {"bottleneck": [*ENTRIES, *PLACES]})
BYTES_VARIANTS = {
    "the largest entries of one block": Case(
        {**FIXED, "grow": "block"},
        lambda turn: {**told(turn), "bottleneck": [*ENTRIES, *VECTORS, *(PLACES[:2] if turn.t == 2 else [])]},
        largest_alone,
        first=lambda turn: {"bottleneck": [*ENTRIES, *PLACES]},
    )
}


def test_a_density_that_empties_a_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"a density of 1e-05 leaves none of the \d+ entries of .*: give a larger method") as e:
        tiny.federation(replace(SMALL, density=1e-5, layers="uniform"), rounds=1)
    assert "\n" not in str(e.value)
