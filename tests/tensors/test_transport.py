"""Transport against POT, closed forms, and a dense convex solver where neither is at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog, minimize
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from by_hand import close
from weft.tensors.transport import Transport, transported


def costs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """As of cosines: from 0 to 2, unlike in every problem and for every prompt."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(k: int = 2, b: int = 3, places: int = 7, classes: int = 5, prompts: int = 2, e: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    patches, texts = (torch.randn(*s, e, generator=g, dtype=torch.float64) for s in ((k, b, places), (k, classes, prompts)))
    return F.normalize(patches, dim=-1), F.normalize(texts, dim=-1)


# the plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize(("mass", "entropy"), [(0.8, 0.1), (0.5, 0.1), (1.0, 0.3), (0.8, 0.03)])
def test_every_problem_of_a_batch_is_pots_entropic_partial_transport(prompts: int, mass: float, entropy: float) -> None:
    """POT lets columns keep mass as well; to move all that they can take is to have them full."""
    cost = costs(2, 9, prompts)
    found = Transport(mass, entropy, 2000).plan(cost)
    for t, c in zip(found, cost, strict=True):
        a, b = np.full(9, 1 / 9), np.full(prompts, mass / prompts)
        wanted = ot.partial.entropic_partial_wasserstein(a, b, c.numpy(), entropy, m=mass, numItermax=2000, stopThr=1e-14)
        close(t, torch.from_numpy(wanted), 1e-7)


@pytest.mark.parametrize("entropy", [0.05, 0.1, 1.0])
def test_a_balanced_plan_is_pots_sinkhorn(entropy: float) -> None:
    cost = costs(3, 9, 2)
    found = Transport(1.0, entropy, 2000, balanced=True).plan(cost)
    for t, c in zip(found, cost, strict=True):
        wanted = ot.sinkhorn(np.full(9, 1 / 9), np.full(2, 0.5), c.numpy(), entropy, numItermax=2000, stopThr=1e-14)
        close(t, torch.from_numpy(wanted), 1e-8)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_partial_plan_is_what_a_general_convex_solver_finds(seed: int) -> None:
    cost, mass, entropy = costs(4, 2, seed=seed).numpy(), 0.7, 0.2
    rows, columns = np.kron(np.eye(4), np.ones(2)), np.kron(np.ones(4), np.eye(2))

    def value(t: np.ndarray) -> float:
        return float((t * cost.ravel()).sum() + entropy * (t * np.log(t)).sum())

    best = minimize(
        value,
        np.full(8, mass / 8),
        jac=lambda t: cost.ravel() + entropy * (np.log(t) + 1),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 8,
        constraints=[
            {"type": "ineq", "fun": lambda t: 1 / 4 - rows @ t},
            {"type": "eq", "fun": lambda t: columns @ t - mass / 2},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert best.success
    found = Transport(mass, entropy, 2000).plan(torch.from_numpy(cost)).numpy()
    assert found.sum(1).min() < 1 / 4 - 0.02, "every row would be full"
    np.testing.assert_allclose(found.ravel(), best.x, atol=1e-6)


def test_with_little_entropy_it_costs_what_the_best_plan_does() -> None:
    cost, mass = costs(6, 2, seed=5), 0.6
    rows, columns = np.kron(np.eye(6), np.ones(2)), np.kron(np.ones(6), np.eye(2))
    best = linprog(cost.numpy().ravel(), A_ub=rows, b_ub=np.full(6, 1 / 6), A_eq=columns, b_eq=np.full(2, mass / 2))
    found = Transport(mass, 2e-3, 20000).plan(cost)
    assert float((found * cost).sum()) == pytest.approx(best.fun, abs=1e-3)


@pytest.mark.parametrize(("entropy", "iterations", "over"), [(0.1, 100, 1e-4), (0.01, 100, 1e-2), (0.01, 10000, 1e-6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_exact_and_rows_are_kept_the_better_the_longer(
    entropy: float, iterations: int, over: float, dtype: torch.dtype
) -> None:
    cost = 0.6 + 0.2 * costs(5, 16, 2, dtype=dtype)  # as of a CLIP, whose cosines are alike
    found = Transport(0.8, entropy, iterations).plan(cost)
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    assert bool((found >= 0).all())
    close(found.sum(-2), torch.full((5, 2), 0.4, dtype=dtype), exact)
    assert float(found.sum(-1).max()) <= 1 / 16 + max(over, exact)
    s = 1 - cost
    close((found * s).sum((-2, -1)), 0.8 - (found * cost).sum((-2, -1)), exact)


def test_one_prompt_looks_at_all_patches_alike_and_two_equal_ones_are_as_one() -> None:
    cost = costs(4, 9, 1)
    found = Transport(1.0, 0.1, balanced=True).plan(cost)
    close(found, torch.full_like(cost, 1 / 9), 1e-12)
    twice = Transport(1.0, 0.1, 2000).plan(cost.expand(4, 9, 2))
    close((twice * cost).sum((-2, -1)), (Transport(1.0, 0.1, 2000).plan(cost) * cost).sum((-2, -1)), 1e-9)


def test_with_much_entropy_everything_is_even() -> None:
    close(Transport(0.7, 1e5).plan(costs(3, 8, 2)), torch.full((3, 8, 2), 0.7 / 16, dtype=torch.float64), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_underflows_and_half_precision_is_solved_in_single(dtype: torch.dtype) -> None:
    cost = torch.tensor([[0.0, 2.0], [2.0, 2.0], [2.0, 2.0]], dtype=dtype)
    found = Transport(0.8, 0.01).plan(cost)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    close(found.sum(0), torch.full((2,), 0.4), 1e-5)


def test_a_known_potential_gives_the_same_plan_in_one_iteration_and_so_does_a_single_one_from_the_start() -> None:
    cost, solver = costs(3, 7, 2), Transport(0.8, 0.1, 25)
    assert torch.equal(solver.plan(cost, solver.potential(cost)), solver.plan(cost))
    k = (-cost / 0.1).exp()
    u = (1 / 7 / k.sum(-1)).clamp(max=1)
    v = 0.4 / (k * u.unsqueeze(-1)).sum(-2)
    close(Transport(0.8, 0.1, 1).plan(cost), u.unsqueeze(-1) * k * v.unsqueeze(-2), 1e-12)


def test_problems_do_not_see_each_other() -> None:
    """As they would if a mean over them told when to stop."""
    cost = costs(6, 9, 2)
    cost[3:] *= 0.01  # settled long before the others
    whole = Transport(0.8, 0.02).plan(cost)
    for i in range(6):
        close(whole[i], Transport(0.8, 0.02).plan(cost[i]), 1e-14)


# sums over patches and prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("room", [1, 100, 1 << 20])
def test_in_turns_or_at_once_sums_and_slopes_are_those_of_the_dense_tensor_with_the_plan_held(balanced: bool, room: int) -> None:
    patches, texts = features()
    texts.requires_grad_(True)
    solver = Transport(1.0 if balanced else 0.8, 0.1, 40, balanced)
    s = torch.einsum("kbve,kcne->kbcvn", patches, texts)
    plan = solver.plan(1 - s)
    assert not plan.requires_grad
    wanted = (plan * s).sum((-2, -1))
    found = transported(patches, texts, solver, room)
    close(found, wanted, 1e-12)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slopes = [torch.autograd.grad((z * weights).sum(), texts)[0] for z in (found, wanted)]
    close(slopes[0], slopes[1], 1e-12)


def test_at_the_optimum_the_plan_may_be_held_in_the_slope_of_the_cost_with_its_entropy() -> None:
    """The envelope theorem, by finite differences: d min(⟨T, C⟩ + λ Σ T log T) = ⟨T, dC⟩."""
    patches, texts = features(1, 1, 5, 1)
    solver, e = Transport(0.7, 0.3, 4000), 1e-5
    g = torch.Generator().manual_seed(4)
    along = torch.randn(texts.shape, generator=g, dtype=torch.float64)

    def value(h: Tensor) -> float:
        cost = 1 - torch.einsum("kbve,kcne->kbcvn", patches, h)
        plan = solver.plan(cost)
        return float((plan * cost).sum() + 0.3 * (plan * plan.log()).sum())

    leaf = texts.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(-transported(patches, leaf, solver).sum(), leaf)
    assert float((slope * along).sum()) == pytest.approx(
        (value(texts + e * along) - value(texts - e * along)) / (2 * e), rel=1e-6
    )


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.found = max(self.found, t.numel())
        return out


@contextmanager
def kept() -> Iterator[list[int]]:
    """Elements of the tensors that are kept for a backward pass."""
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield sizes


@pytest.mark.parametrize("classes", [1, 4])
def test_no_tensor_is_larger_than_the_room_forwards_or_backwards_and_none_of_the_costs_is_kept(classes: int) -> None:
    k, b, places, all_classes = 2, 3, 20, 16
    patches, texts = features(k, b, places, all_classes)
    room = k * b * places * 2 * classes
    largest = Largest()
    with largest, kept() as sizes:
        leaf = texts.clone().requires_grad_(True)
        transported(patches, leaf, Transport(0.8, 0.1, 5), room).sum().backward()
    rest = max(patches.numel(), texts.numel())
    assert largest.found <= max(room, rest) < k * b * all_classes * places * 2
    assert sizes
    assert sum(sizes) <= patches.numel() + texts.numel() + k * b * all_classes * 2
    whole = Largest()
    with whole:
        transported(patches, leaf, Transport(0.8, 0.1, 5), 10 * room * all_classes)
    assert whole.found == k * b * all_classes * places * 2
    assert math.isfinite(float(leaf.grad.sum()))  # type: ignore[union-attr]
