"""Similarities of tasks and classes, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from weft.aggregation.task_similarity import shared, similar


def vectors(*sizes: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(3, n, generator=g, dtype=torch.float64) for n in sizes]


def cosine(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))


def test_entries_are_powers_of_the_mean_cosine_over_what_both_tell() -> None:
    some = vectors(4, 6, 6)
    found = similar(some, 30)
    for i, u in enumerate(some):
        for j, v in enumerate(some):
            n = min(u.shape[1], v.shape[1])
            near = sum(cosine(a[:n].tolist(), b[:n].tolist()) for a, b in zip(u, v, strict=True)) / 3
            assert found[i, j] == pytest.approx(1.0 if i == j else max(near, 0) ** 30, abs=1e-12)


def test_opposites_are_not_alike_though_the_power_is_even() -> None:
    (u,) = vectors(5)
    assert torch.equal(similar([u, -u], 30), torch.eye(2, dtype=torch.float64))


def test_equal_vectors_are_alike_whatever_their_length_and_one_without_is_like_itself() -> None:
    (u,) = vectors(5)
    found = similar([u, None, 3 * u], 30)
    assert torch.allclose(found, torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64))


def test_of_a_class_the_largest_entries_of_other_tasks_count() -> None:
    (u,) = vectors(5)
    a, b = torch.zeros_like(u), torch.zeros_like(u)
    a[:, 0], b[:, 1] = 1, 1
    # three tasks: the first and the second have the class a, the third b twice
    assert torch.allclose(shared([a, a, b, b], ["x", "y", "z", "z"], 30, 3), torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64))
    assert torch.allclose(shared([a, a, a, a], ["x", "y", "z", "w"], 30, 3), torch.full((4,), 2 / 3, dtype=torch.float64))
    assert torch.allclose(shared([a, a, a, a], ["x", "y", "z", "w"], 30, 2), torch.full((4,), 1 / 2, dtype=torch.float64))
    assert len(shared([], [], 30, 3)) == 0
