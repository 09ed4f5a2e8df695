"""What tasks share that predict something of each word: the loss of the words that have a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.tasks.losses import mean_of
from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.backbones.run_table import Table


class Tagged:
    """To be put before a task whose rows have a tag for each word, or for their first alone."""

    samples: ClassVar[int] = 0

    @property
    def head(self) -> Head:
        return Head()

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        tags = torch.from_numpy(table.tags_of(index.reshape(-1))).view(len(index), -1)  # type: ignore[union-attr]
        return tags.clamp(min=0), tags >= 0

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int = 0, beside: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of each client over its tagged words: [k]."""
        return mean_of(out.cross_entropy(labels), mask)
