"""Losses with a client axis, that tasks and methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of(each: Tensor, mask: Tensor) -> Tensor:
    """[k] means over the valid entries of [k, b]; 0 for a client without any."""
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)


def distillation(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over valid rows: [k, b, C] -> [k] (Hinton et al., 2015)."""
    log_p = torch.log_softmax(teacher.detach() / temperature, -1)
    log_q = torch.log_softmax(student / temperature, -1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * mean_of(each, mask)
