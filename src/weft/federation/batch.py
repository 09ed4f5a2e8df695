"""What goes into a pack's forward pass, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from weft.backbones.tables import Table


@dataclass(frozen=True)
class Batch:
    """Rows of k clients.

    Attributes:
        clients: [k] indices into the pack, None = all K in order. index: [k, b] rows of the table, -1 = padding.
        labels: [k, b]. mask: [k, b] bool, valid rows.
    """

    clients: Tensor | None
    index: np.ndarray
    labels: Tensor
    mask: Tensor

    def of(self, values: Tensor) -> Tensor:
        """[K, …] values of the pack's clients -> [k, …] of those in the batch."""
        return values if self.clients is None else values.index_select(0, self.clients)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
        logits: [k, b, C].
    """

    logits: Tensor


def make_batch(table: Table, index: np.ndarray, present: list[int] | None, device: torch.device) -> Batch:
    labels = torch.from_numpy(np.where(index >= 0, table.labels[index], 0)).to(device)
    clients = None if present is None else torch.tensor(present, device=device)
    return Batch(clients, index, labels, torch.from_numpy(index >= 0).to(device))
