"""Scores and gates against what their papers' formulas give by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.aggregation import importance
from weft.aggregation.pruning import n_of_m, pruned, share_of_pattern

W = torch.tensor([[1.0, -3.0, 0.5], [0.0, 2.0, -0.1]], dtype=torch.float64)
G = torch.tensor([[0.2, 0.4, -1.0], [5.0, -0.5, 3.0]], dtype=torch.float64)


def test_magnitude_and_change_are_distances() -> None:
    assert importance.magnitude(W).tolist() == [[1, 3, 0.5], [0, 2, 0.1]]
    np.testing.assert_allclose(importance.change(W, torch.ones_like(W)), [[0, 4, 0.5], [1, 1, 1.1]])
    assert torch.equal(importance.change(W, torch.zeros_like(W)), importance.magnitude(W))


def test_movement_is_high_where_training_drives_an_entry_away_from_0() -> None:
    once = importance.movement(W, G)
    np.testing.assert_allclose(once, [[-0.2, 1.2, 0.5], [0, 1, 0.3]])
    twice = importance.movement(W, G, once)
    assert torch.equal(twice, 2 * once)
    step = W - 0.01 * G  # of plain descent: |w| grows where the score is above 0
    grown = (step.abs() > W.abs())[W != 0]
    assert torch.equal(grown, (once > 0)[W != 0])


def test_movement_keeps_what_magnitude_would_not() -> None:
    """A large entry on its way to 0 goes, and a small one that grows stays."""
    w, g = torch.tensor([2.0, 0.1]), torch.tensor([1.0, -1.0])
    everything = torch.ones(2, dtype=torch.bool)
    assert pruned(importance.magnitude(w), everything, 0.5).tolist() == [True, False]
    assert pruned(importance.movement(w, g), everything, 0.5).tolist() == [False, True]


def test_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert importance.fisher(rows).tolist() == [1, 4]


def by_hand(a: float, u: float, low: float, high: float) -> float:
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + a) * 1.5))
    return min(1.0, max(0.0, s * (high - low) + low))


@pytest.mark.parametrize("stretched", [importance.STRETCHED, (-0.1, 1.1)])
def test_gates_are_the_papers(stretched: tuple[float, float]) -> None:
    draw = np.random.default_rng(0)
    a, u = draw.normal(size=200), draw.uniform(0.001, 0.999, 200)
    found = importance.gates(torch.from_numpy(a), torch.from_numpy(u), stretched)
    assert found.tolist() == pytest.approx([by_hand(x, y, *stretched) for x, y in zip(a, u, strict=True)], abs=1e-12)
    assert float(importance.gates(torch.tensor(0.0), None, stretched)) == pytest.approx(sum(stretched) / 2)
    assert importance.gates(torch.tensor([-50.0, 50.0]), None, stretched).tolist() == [0, 1]


@pytest.mark.parametrize("stretched", [importance.STRETCHED, (-0.1, 1.1)])
def test_the_open_share_is_how_often_gates_are_open(stretched: tuple[float, float]) -> None:
    draw = torch.Generator().manual_seed(0)
    for a in (-2.0, 0.0, 1.5):
        u = torch.rand(200_000, generator=draw, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        often = float((importance.gates(torch.full_like(u, a), u, stretched) > 0).double().mean())
        assert float(importance.open_share(torch.tensor(a), stretched)) == pytest.approx(often, abs=0.005)


def test_gates_learn_by_their_scores() -> None:
    a = torch.zeros(3, requires_grad=True)
    z: Tensor = importance.gates(a, torch.tensor([0.4, 0.5, 0.6]))
    (slope,) = torch.autograd.grad(z.sum() + importance.open_share(a).sum(), a)
    assert bool((slope > 0).all())


def test_the_share_of_a_pattern() -> None:
    scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert share_of_pattern(n_of_m(scores)) == 1.0
    assert share_of_pattern(torch.ones(2, 4, dtype=torch.bool)) == 0.0
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert share_of_pattern(mask) == 0.5
    assert share_of_pattern(torch.ones(3, 6, dtype=torch.bool)) is None
    assert share_of_pattern(torch.tensor(True)) is None
