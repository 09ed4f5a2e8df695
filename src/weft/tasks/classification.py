"""Single-label classification: head, loss with a client axis, metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.adaptation.head import Head


@dataclass(frozen=True)
class Classification:
    """What is predicted.

    Attributes:
        classes: names of the labels, in index order.
    """

    classes: tuple[str, ...]

    @property
    def head(self) -> Head:
        return Head()

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Mean cross-entropy of each client over its valid rows: [k, b, C], [k, b], [k, b] bool -> [k]."""
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(mask)
        return mean_of(each, mask)


def mean_of(each: Tensor, mask: Tensor) -> Tensor:
    """[k] means over the valid entries of [k, b]; 0 for a client without any."""
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)


def distillation(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over valid rows: [k, b, C] -> [k] (Hinton et al., 2015)."""
    log_p = torch.log_softmax(teacher.detach() / temperature, -1)
    log_q = torch.log_softmax(student / temperature, -1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * mean_of(each, mask)
