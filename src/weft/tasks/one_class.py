"""What tasks share whose rows are each of one class of many: one thing to predict in a row, learnt by cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.tasks.losses import mean_of
from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.backbones.run_table import Table


class OneClass:
    """To be put before what is scored."""

    @property
    def head(self) -> Head:
        return Head()

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = np.where(index >= 0, table.labels[index], 0)
        return torch.from_numpy(labels), torch.from_numpy(index >= 0)

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int = 0, beside: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of each client over its valid rows: [k]."""
        return mean_of(out.cross_entropy(labels), mask)
