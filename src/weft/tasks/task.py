"""What a federation learns to predict, as methods and engines see it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from weft.adaptation.head import Head


class Task(Protocol):
    """One kind of prediction.

    Attributes:
        classes: names of the labels, in index order.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def head(self) -> Head: ...

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Mean loss of each client over its valid rows: [k, b, C], [k, b], [k, b] bool -> [k]."""
        ...
