"""Single-label classification: head, loss with a client axis, metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from weft.adaptation.head import Head
from weft.tasks.losses import mean_of


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
