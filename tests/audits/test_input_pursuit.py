"""Inputs of one linear layer, made by hand in NumPy, out of how its weights changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.audits import input_pursuit

D, M = 48, 1500
ROUNDING = 1e-9


def layer(rows: int, inputs: int, seed: int, steps: int = 1) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """The change [rows, D] of a layer whose gradient is δᵀX, candidates [M, D], and which of them X are."""
    random = np.random.default_rng(seed)
    candidates = random.normal(size=(M, D)) * random.uniform(0.5, 4, size=(M, 1))
    own = random.choice(M, inputs, replace=False)
    change = sum(random.normal(size=(inputs, rows)).T @ candidates[own] for _ in range(steps))
    return change + 1e-12 * random.normal(size=(rows, D)), candidates, set(own.tolist())


def pursued(change: np.ndarray, candidates: np.ndarray, most: int = D - 1) -> list[int]:
    return input_pursuit.pursue(torch.from_numpy(change), torch.from_numpy(candidates), ROUNDING, most)


def outside(change: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """By least squares: what is left of each candidate that the rows explain, over its length."""
    explained = change.T @ np.linalg.lstsq(change.T, candidates.T, rcond=1e-9)[0]
    return np.linalg.norm(candidates.T - explained, axis=0) / np.linalg.norm(candidates, axis=1)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("rows", "inputs"), [(20, 12), (60, 30), (4, 3)])
def test_fewer_inputs_than_rows_are_those_in_the_span(rows: int, inputs: int, steps: int) -> None:
    change, candidates, own = layer(rows, inputs, 0, steps)
    basis = input_pursuit.row_space(torch.from_numpy(change), ROUNDING)
    assert len(basis) == inputs
    far = input_pursuit.apart(torch.from_numpy(candidates), basis).numpy()
    np.testing.assert_allclose(far, outside(change, candidates), atol=1e-8)
    assert set(np.flatnonzero(far < 1e-6).tolist()) == own
    assert set(pursued(change, candidates)) == own


@pytest.mark.parametrize(("rows", "inputs"), [(4, 8), (8, 14), (16, 20)])
def test_more_inputs_than_rows_are_found_one_after_another(rows: int, inputs: int) -> None:
    """None lies in the span, and yet these and no others are chosen: it ends where they explain the change."""
    for seed in range(3):
        change, candidates, own = layer(rows, inputs, seed)
        assert outside(change, candidates).min() > 0.01
        found = pursued(change, candidates)
        assert set(found) == own
        assert len(found) == inputs


def test_too_many_inputs_are_not_found() -> None:
    """Half as many as there are dimensions, behind two rows; and as noise has it."""
    change, candidates, own = layer(2, D // 2, 0)
    found = pursued(change, candidates, D // 2)
    assert len(found) == D // 2
    assert len(own & set(found)) < D // 4
    noise = np.random.default_rng(1).normal(size=change.shape)
    assert len(own & set(pursued(noise, candidates, D // 2))) <= 3


def test_a_candidate_and_its_double_count_once() -> None:
    change, candidates, own = layer(4, 8, 0)
    twice = np.concatenate([candidates, 2 * candidates])
    found = pursued(change, twice)
    assert {i % M for i in found} == own
    assert len(found) == len(own)
    assert pursued(np.zeros((3, D)), candidates) == []
    assert len(pursued(change, candidates, 5)) == 5


def test_a_subspace_is_known_up_to_rounding() -> None:
    basis = torch.eye(5, dtype=torch.float64)[:2]
    noise = 1e-9 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ basis + noise
    found = input_pursuit.row_space(rows, 1e-7)
    assert len(found) == 2
    assert torch.allclose(found.mT @ found, basis.mT @ basis, atol=1e-6)
    assert len(input_pursuit.row_space(rows, 0.0)) == 5
