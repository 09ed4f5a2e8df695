"""Losses with a client axis, that tasks and methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.tasks.outputs import Output


def mean_of(each: Tensor, mask: Tensor) -> Tensor:
    """[k] means over the valid entries of [k, b]; 0 for a client without any."""
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)


def distillation(teacher: Output | Tensor, student: Output, mask: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the valid ones of m things: [k] (Hinton et al., 2015).

    Args:
        teacher: a pass over the same batch, or its logits [k, m, C]; no gradient goes there. mask: [k, m] bool.
    """

    def divergence(mine: Tensor, theirs: Tensor) -> Tensor:
        log_p = torch.log_softmax(theirs.detach() / temperature, -1)
        log_q = torch.log_softmax(mine / temperature, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    return temperature**2 * mean_of(student.each(divergence, teacher), mask)
