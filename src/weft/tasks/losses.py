"""Losses with a client axis, that tasks and methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.tasks.outputs import Output


def mean_of(each: Tensor, mask: Tensor) -> Tensor:
    """[k] means over the valid entries of [k, b]; 0 for a client without any."""
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)


def distillation(
    teacher: Output | Tensor, student: Output, mask: Tensor, temperature: float, allowed: Tensor | None = None
) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the valid ones of m things: [k] (Hinton et al., 2015).

    Args:
        teacher: a pass over the same batch, or its logits [k, m, C]; no gradient goes there. mask: [k, m] bool.
        allowed: [k, m, C] bool, the classes that each may have, as a batch has them; None = all.
    """
    if allowed is not None:
        teacher, student = (teacher if isinstance(teacher, Output) else Output(teacher)).within(allowed), student.within(allowed)

    def divergence(mine: Tensor, theirs: Tensor) -> Tensor:
        # of a class that is cut, over a temperature below 1, the logarithm is infinite, and 0·∞ no number
        log_p, log_q = (
            torch.log_softmax(z / temperature, -1).clamp(min=torch.finfo(z.dtype).min) for z in (theirs.detach(), mine)
        )
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    return temperature**2 * mean_of(student.each(divergence, teacher), mask)
