"""The LASSO over a table: against scikit-learn, and against the conditions that only the solution meets, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from weft.aggregation.lasso import Sparse, lasso


def problem(atoms: int, d: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A table, and targets that are means of some of its rows, less another row."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(atoms, d, generator=g, dtype=torch.float64).to(dtype) / d**0.5
    table *= 0.5 + torch.rand(atoms, 1, generator=g)  # rows of unequal lengths
    chosen = torch.randint(atoms, (n, 4), generator=g)
    return table, table[chosen[:, :3]].mean(1) - table[chosen[:, 3]]


def dense(found: Sparse, atoms: int) -> Tensor:
    w = torch.zeros(atoms, dtype=torch.float64)
    w[found.atoms] = found.weights
    return w


def check_optimal(table: Tensor, target: Tensor, w: Tensor, alpha: float, tolerance: float) -> None:
    """KKT."""
    slopes = table.double() @ (target.double() - table.double().T @ w)
    used = w != 0
    torch.testing.assert_close(slopes[used], alpha * w[used].sign(), rtol=0, atol=tolerance)
    assert float(slopes.abs().max()) <= alpha + tolerance


@pytest.mark.parametrize("alpha", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize(("atoms", "d"), [(40, 24), (300, 24), (2000, 64)])
def test_it_is_scikit_learns_in_the_convention_of_a_sum_of_squares(atoms: int, d: int, alpha: float) -> None:
    table, targets = problem(atoms, d, 3, seed=atoms)
    for target, found in zip(targets, lasso(table, targets, alpha, 1e-10), strict=True):
        # its error is averaged over the d entries of the target: 1/(2d) ‖r - Eᵀw‖² + (α/d) ‖w‖₁
        theirs = Lasso(alpha / d, fit_intercept=False, tol=1e-14, max_iter=200_000).fit(table.T.numpy(), target.numpy()).coef_
        w = dense(found, atoms)
        assert 0 < len(found.atoms) <= d
        assert torch.equal(found.atoms, found.atoms.unique())
        torch.testing.assert_close(w, torch.from_numpy(theirs), rtol=0, atol=1e-6)
        check_optimal(table, target, w, alpha, 1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_the_solution_meets_the_conditions_of_optimality(seed: int) -> None:
    """Atoms that lean the same way, so that weights change their signs on the way."""
    g = torch.Generator().manual_seed(seed)
    table, targets = problem(500, 16, 2, seed)
    table += 0.5 * torch.randn(1, 16, generator=g, dtype=torch.float64)
    for target, found in zip(targets, lasso(table, targets, 5e-3, 1e-10), strict=True):
        check_optimal(table, target, dense(found, 500), 5e-3, 1e-8)


def test_nothing_is_taken_from_the_largest_inner_product_on() -> None:
    table, targets = problem(200, 16, 1, seed=0)
    edge = float((table @ targets[0]).abs().max())
    assert len(lasso(table, targets, edge)[0].atoms) == 0
    below = lasso(table, targets, 0.99 * edge)[0]
    assert below.atoms.tolist() == [int((table @ targets[0]).abs().argmax())]


def test_without_a_penalty_a_target_in_the_span_is_met() -> None:
    table, targets = problem(60, 16, 3, seed=4)
    for alpha in (0.0, 1e-9):
        for target, found in zip(targets, lasso(table, targets, alpha, 1e-12), strict=True):
            torch.testing.assert_close(found.weights @ table[found.atoms], target, rtol=0, atol=1e-6)


def test_equal_atoms_and_targets_of_nothing() -> None:
    table, targets = problem(50, 8, 2, seed=5)
    twice = torch.cat([table, table[:20], 2 * table[:10]])
    targets[1] = 0
    found = lasso(twice, targets, 0.01, 1e-10)
    check_optimal(twice, targets[0], dense(found[0], len(twice)), 0.01, 1e-7)
    assert len(found[1].atoms) == 0
    assert lasso(twice, targets[:0], 0.01) == []


def test_a_table_of_single_precision_gives_the_same_up_to_its_rounding() -> None:
    table, targets = problem(3000, 48, 4, seed=6)
    exact = lasso(table, targets, 0.1, 1e-10)
    for a, b in zip(exact, lasso(table.float(), targets.float(), 0.1), strict=True):
        torch.testing.assert_close(dense(a, 3000), dense(b, 3000), rtol=0, atol=1e-4)


def test_the_largest_weights_are_kept_and_fitted_anew_by_least_squares() -> None:
    table, targets = problem(300, 24, 1, seed=7)
    whole = lasso(table, targets, 0.02)[0]
    kept = whole.largest(3)
    w = dense(whole, 300)
    assert set(kept.atoms.tolist()) == set(w.abs().topk(3).indices.tolist())
    assert len(whole.atoms) > 3
    assert torch.equal(kept.weights, w[kept.atoms])
    fitted = kept.refitted(table, targets[0])
    wanted = np.linalg.lstsq(table[kept.atoms].T.numpy(), targets[0].numpy(), rcond=None)[0]
    torch.testing.assert_close(fitted.weights, torch.from_numpy(wanted))
    assert torch.equal(fitted.atoms, kept.atoms)
    ties = Sparse(torch.tensor([1, 4, 9]), torch.tensor([-0.5, 0.5, 0.5], dtype=torch.float64)).largest(2)
    assert ties.atoms.tolist() == [1, 4]
