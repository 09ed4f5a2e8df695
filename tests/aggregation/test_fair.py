"""LoRA-FAIR's solvers against dense matrices and other people's optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weft.aggregation.fair import Target, corrected, ridge

D_OUT, D_IN, R = 14, 11, 3


def drawn(seed: int = 0, clients: int = 4, apart: float = 1.0) -> tuple[list[Tensor], list[Tensor], list[float]]:
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(R, D_IN, generator=g, dtype=torch.float64), torch.randn(D_OUT, R, generator=g, dtype=torch.float64)
    As = [common[0] + apart * torch.randn(R, D_IN, generator=g, dtype=torch.float64) for _ in range(clients)]
    Bs = [common[1] + apart * torch.randn(D_OUT, R, generator=g, dtype=torch.float64) for _ in range(clients)]
    return As, Bs, [3.0, 1.0, 2.0, 2.0][:clients]


def means(As: list[Tensor], Bs: list[Tensor], w: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Ā, B̄ and the dense D."""
    p = [x / sum(w) for x in w]
    a, b, d = (
        sum(x * y for x, y in zip(p, some, strict=True)) for some in (As, Bs, [b @ a for a, b in zip(As, Bs, strict=True)])
    )
    return a, b, d  # type: ignore[return-value]


def cosine(d: Tensor, m: Tensor) -> Tensor:
    return (d * m).sum() / (d.norm() * m.norm())


@pytest.mark.parametrize("seed", range(3))
def test_the_cosine_of_factors_is_that_of_dense_matrices(seed: int) -> None:
    As, Bs, w = drawn(seed)
    a, b, d = means(As, Bs, w)
    target = Target.of(As, Bs, w, a)
    torch.testing.assert_close(target.norm, float(d.norm()), rtol=1e-12, atol=0)
    torch.testing.assert_close(target.T, d @ a.mT, rtol=1e-12, atol=1e-12)
    assert abs(target.cosine(b) - float(cosine(d, b @ a))) < 1e-12


def objective(d: Tensor, a: Tensor, b: Tensor, x: Tensor, penalty: float) -> Tensor:
    return 1 - cosine(d, x @ a) + penalty * (x - b).norm() / b.norm()


@pytest.mark.parametrize("penalty", [0.0, 0.003, 0.03, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_optimizer_finds_anything_lower(seed: int, penalty: float) -> None:
    """L-BFGS on dense matrices with autograd, from several starts."""
    As, Bs, w = drawn(seed)
    a, b, d = means(As, Bs, w)
    found = corrected(Target.of(As, Bs, w, a), b, penalty, steps=5000)
    mine = float(objective(d, a, b, found, penalty))
    assert mine <= float(objective(d, a, b, b, penalty)) + 1e-12
    g = torch.Generator().manual_seed(seed)
    for jitter in (1e-3, 0.1, 0.5):
        x = (b + jitter * torch.randn(b.shape, generator=g, dtype=torch.float64)).requires_grad_(True)
        solver = torch.optim.LBFGS(
            [x], max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
        )

        def closure(x: Tensor = x, solver: torch.optim.LBFGS = solver) -> Tensor:
            solver.zero_grad()
            value = objective(d, a, b, x, penalty)
            value.backward()
            return value

        solver.step(closure)  # type: ignore[no-untyped-call]
        assert mine <= float(objective(d, a, b, x.detach(), penalty)) + 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_without_a_penalty_it_comes_to_the_best_cosine_that_there_is_beside_this_mean_of_a(seed: int) -> None:
    As, Bs, w = drawn(seed)
    a, b, d = means(As, Bs, w)
    bound = float((d @ torch.linalg.pinv(a) @ a).norm() / d.norm())
    target = Target.of(As, Bs, w, a)
    assert bound - 1e-6 < target.cosine(corrected(target, b, 0.0, steps=20000)) <= bound + 1e-12
    assert abs(target.cosine(ridge(target, b, 0.0)) - bound) < 1e-12
    assert target.cosine(b) < bound - 1e-3


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**-10, 2.0**10])
def test_a_b_of_another_size_is_corrected_by_as_much_of_itself(scale: float) -> None:
    """Steps of SGD on ΔB would make a B of 0.0026 36 times as large."""
    As, Bs, w = drawn(1)
    a, b, _ = means(As, Bs, w)
    whole = corrected(Target.of(As, Bs, w, a), b, 0.01)
    part = corrected(Target.of(As, [scale * x for x in Bs], w, a), scale * b, 0.01)
    torch.testing.assert_close(part / scale, whole, rtol=1e-6, atol=1e-9)
    assert 0.5 < float(whole.norm() / b.norm()) < 2
    assert 0 < float((whole - b).norm() / b.norm()) < 1


def test_a_penalty_that_is_large_enough_changes_nothing_at_all() -> None:
    As, Bs, w = drawn(2)
    a, b, _ = means(As, Bs, w)
    assert torch.equal(corrected(Target.of(As, Bs, w, a), b, 10.0), b)
    torch.testing.assert_close(ridge(Target.of(As, Bs, w, a), b, 1e9), b, rtol=1e-6, atol=1e-6)


def test_where_the_means_are_exact_already_nothing_changes() -> None:
    As, Bs, w = drawn(3)
    a, b, _ = means(As[:1], Bs[:1], w[:1])
    same = [As[0]] * 4, [Bs[0]] * 4
    for A, B, weights in ((As[:1], Bs[:1], w[:1]), (*same, w), ([As[0]] * 4, Bs, w)):
        a, b, d = means(A, B, weights)
        found = corrected(Target.of(A, B, weights, a), b, 0.01)
        torch.testing.assert_close(found @ a, d, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found, b, rtol=1e-7, atol=1e-7)


def test_a_b_of_zero_and_an_a_of_too_little_rank_stay() -> None:
    As, Bs, w = drawn(4)
    a, b, _ = means(As, [0 * x for x in Bs], w)
    assert not bool(corrected(Target.of(As, [0 * x for x in Bs], w, a), b, 0.01).any())
    flat = [torch.cat([x[:1]] * R) for x in As]
    a, b, _ = means(flat, Bs, w)
    for found in (corrected(Target.of(flat, Bs, w, a), b, 0.01), ridge(Target.of(flat, Bs, w, a), b, 0.01)):
        assert bool(found.isfinite().all())


def test_ridge_is_least_squares() -> None:
    As, Bs, w = drawn(5)
    a, b, d = means(As, Bs, w)
    mu = 0.2 * float((a @ a.mT).trace()) / R
    left = torch.cat([a.mT, mu**0.5 * torch.eye(R, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(left, torch.cat([d.mT, mu**0.5 * b.mT])).solution.mT
    torch.testing.assert_close(ridge(Target.of(As, Bs, w, a), b, 0.2), wanted, rtol=1e-9, atol=1e-9)
