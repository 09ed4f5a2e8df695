"""PF2LoRA against its card: one step of the own LoRA inside the derivative of the common one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.contract import Optim
from weft.errors import UserError
from weft.methods import FedIT, PF2LoRA
from weft.tasks.kinds import GENERATION

SCALE, ALPHA, LR = 3.0, 6.0, 0.3
SMALL = PF2LoRA(
    rank=2,
    private=1,
    alpha=6.0,
    sites="q",
    steps=2,
    batch=3,
    lower=Optim("sgd", lr=ALPHA, schedule="constant"),
    optim=Optim("sgd", lr=LR, schedule="constant"),
)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
Values = dict[str, Tensor]


def loss(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray) -> Tensor:
    """Both LoRAs as one of stacked factors, at one scale: [B D], [A; C]."""
    stacked = {n: v for n, v in values.items() if n.startswith("head/")}
    for name, value in values.items():
        if name.startswith("lora/"):
            stacked[name] = torch.cat([value, values["mine/" + name.removeprefix("lora/")]], 0 if name.endswith("/A") else 1)
    with sdpa_kernel(SDPBackend.MATH):
        return F.cross_entropy(by_hand.logits(run, stacked, rows, SCALE), by_hand.labels(run, rows))


def lower(run: tiny.Federation, values: Values, rows: np.ndarray, graph: bool) -> Values:
    own = {n: v if v.requires_grad else v.requires_grad_(True) for n, v in values.items() if n.startswith("mine/")}
    slopes = torch.autograd.grad(loss(run, values, rows), list(own.values()), create_graph=graph)
    return {n: v - ALPHA * g for (n, v), g in zip(own.items(), slopes, strict=True)}


def turn(run: tiny.Federation, x: Values, y: Values, k: int, t: int, second: bool = True) -> tuple[Values, Values]:
    """A client's turn, by autograd through the lower step."""
    pack = run.pack([k], t)
    streams = [[b.index[0] for b in pack.batches(None, 2, 3, stream=s)] for s in ("main", "lower")]
    for xi, pi in zip(*streams, strict=True):
        leaves = {n: v.detach().clone().requires_grad_(True) for n, v in x.items()}
        fixed = {n: v.detach().clone().requires_grad_(True) for n, v in y.items()}
        after = lower(run, leaves | fixed, pi, second)
        if not second:
            after = {n: v.detach() for n, v in after.items()}
        slopes = torch.autograd.grad(loss(run, leaves | after, xi), list(leaves.values()))
        x = {n: (v - LR * g).detach() for (n, v), g in zip(leaves.items(), slopes, strict=True)}
        y = {n: v.detach() for n, v in after.items()}
    return x, y


@pytest.mark.parametrize("order", ["second", "first"])
def test_four_rounds_by_hand_with_clients_that_are_away(order: Any) -> None:
    run = tiny.federation(replace(SMALL, order=order), **ABOUT)
    x = by_hand.shared(run)
    own = [{n: v for n, v in by_hand.start_of(run, k).items() if n.startswith("mine/")} for k in range(3)]
    for t, present in enumerate(cohorts.ABSENT):
        ends = []
        for k in present:
            end, own[k] = turn(run, x, own[k], k, t, order == "second")
            ends.append(end)
        cohorts.play(run, t, present)
        x = {n: sum(e[n] for e in ends) / len(ends) for n in x}  # type: ignore[misc]
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, x[name], 1e-9)
        for k, kept in enumerate(by_hand.kept(run).values()):
            for name, value in kept.items():
                by_hand.close(value, own[k][name], 1e-9)


def test_both_orders_differ_and_the_second_is_what_finite_differences_say() -> None:
    """The change of x in one step, over the rate, against central differences of f(x, y - α ∇_y f(x, y; π); ξ)."""
    method = replace(SMALL, steps=1)
    run = tiny.federation(method, **ABOUT | {"sizes": (6,)}).run(1)  # B and D have left zero
    pack = run.pack([0], 1)
    x = {n: v for n, v in by_hand.start_of(run, 0, 1).items() if not n.startswith("mine/")}
    y = {n: v for n, v in by_hand.start_of(run, 0, 1).items() if n.startswith("mine/")}
    xi, pi = (next(iter(pack.batches(None, 1, 3, stream=s))).index[0] for s in ("main", "lower"))

    def value(x: Values) -> float:
        after = lower(run, x | {n: v.clone() for n, v in y.items()}, pi, False)
        return float(loss(run, x | {n: v.detach() for n, v in after.items()}, xi))

    found = {}
    for order in ("second", "first"):
        own = run.pack([0], 1)
        list(replace(method, order=order).train(own))
        found[order] = {n: (x[n] - own.value(0, n)) / LR for n in x}
    g = torch.Generator().manual_seed(0)
    worst = 0.0
    for name in x:
        for _ in range(2):
            along = torch.randn(x[name].shape, generator=g, dtype=torch.float64)
            along /= along.norm()
            ends = [value(x | {name: x[name] + e * along}) for e in (1e-5, -1e-5)]
            wanted = (ends[0] - ends[1]) / 2e-5
            assert abs(float((found["second"][name] * along).sum()) - wanted) < 1e-7 + 1e-5 * abs(wanted)
            worst = max(worst, abs(float((found["first"][name] * along).sum()) - wanted))
    assert worst > 2e-5


def test_without_a_lower_step_it_is_fedit_and_nothing_of_the_own_lora_goes_up() -> None:
    still = replace(SMALL, lower=Optim("sgd", lr=0.0, schedule="constant"))
    plain = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=3, weighting="uniform", optim=SMALL.optim)
    found, wanted = (by_hand.shared(tiny.federation(m, **ABOUT).run()) for m in (still, plain))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        by_hand.close(found[name], value, 1e-12)
    run = tiny.federation(SMALL, **ABOUT)
    seen = by_hand.record(run)
    run.run(2)
    assert not [n for updates in seen for u in updates for n in u.tensors if n.startswith("mine/")]


def test_the_first_step_moves_both_b_and_neither_a() -> None:
    run = tiny.federation(replace(SMALL, steps=1), **ABOUT)
    pack = run.pack()
    before = {n: v.detach().clone() for n, v in pack.tensors.items()}
    list(run.method.train(pack))
    for name, value in pack.tensors.items():
        if name.startswith(("lora/", "mine/")):
            assert torch.equal(value, before[name]) == name.endswith("/A")


def test_the_rank_of_the_sum_is_within_the_own_ranks_of_the_common_one() -> None:
    run = tiny.federation(replace(SMALL, rank=4, private=2), **ABOUT).run()
    for kept in by_hand.kept(run).values():
        for site in by_hand.sites(run):
            common, own = (
                values[f"{part}/{site}/B"] @ values[f"{part}/{site}/A"]
                for part, values in (("lora", by_hand.shared(run)), ("mine", kept))
            )
            ranks = [int(torch.linalg.matrix_rank(m, rtol=1e-9)) for m in (common, common + own)]
            assert abs(ranks[1] - ranks[0]) <= 2


def test_wrong_settings_are_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"own LoRA of 2 ranks is no smaller than the common one of 2"):
        tiny.federation(replace(SMALL, private=2), **ABOUT)
    with pytest.raises(UserError, match=r"no second derivative here: set method\.order=first"):
        tiny.federation(SMALL, "llama", task=GENERATION)
    with pytest.raises(UserError, match="has to be plain SGD"):
        tiny.federation(replace(SMALL, lower=Optim("adamw", lr=1e-3)), **ABOUT)


def test_a_language_model_takes_first_order_steps() -> None:
    run = tiny.federation(replace(SMALL, order="first"), "llama", task=GENERATION, rounds=2)
    before = by_hand.shared(run)
    run.run()
    assert not all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_defaults() -> None:
    method = PF2LoRA()
    assert (method.rank, method.private, method.sites, method.steps, method.weighting) == (8, 2, "q,v", 10, "uniform")
    assert method.optim.kind == "adamw"


BYTES = Case({"rank": 2, "private": 1, **SITES}, factors_and_head, factors_and_head)
TINY = {"rank": 4, "private": 2}
