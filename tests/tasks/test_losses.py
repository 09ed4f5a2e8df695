"""Losses that tasks and methods share."""

from __future__ import annotations

import pytest
import torch

import by_hand
from weft.tasks.losses import distillation
from weft.tasks.outputs import Output


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_learns_of_the_classes_that_a_row_may_have_and_of_no_other(temperature: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 3, 5, generator=g, dtype=dtype) for _ in range(2))
    allowed = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool).repeat(2, 1, 1)
    mask = torch.tensor([[True, True, True], [False, True, False]])
    leaf = student.clone().requires_grad_()
    found = distillation(teacher, Output(leaf), mask, temperature, allowed)
    wanted = torch.zeros(2, 3, dtype=dtype)
    for i, j in ((0, 0), (0, 1), (1, 1)):  # of one class alone there is nothing to learn
        p, q = ((z[i, j][allowed[i, j]] / temperature).softmax(-1) for z in (teacher, student))
        wanted[i, j] = temperature**2 * (p * (p / q).log()).sum()
    by_hand.close(found, torch.stack([wanted[0].sum() / 3, wanted[1, 1]]), 1e-12 if dtype == torch.float64 else 1e-5)
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[~allowed].any()
    assert not leaf.grad[~mask].any()
    assert leaf.grad[0, 0, 0] != 0
