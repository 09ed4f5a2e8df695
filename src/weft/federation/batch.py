"""What goes into a pack's forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.backbones.run_table import Table
    from weft.tasks.task import Task


@dataclass(frozen=True)
class Batch:
    """Rows of k clients, and the m things to predict in them: the rows themselves, or their tokens.

    Attributes:
        clients: [k] indices into the pack, None = all K in order. index: [k, b] rows of the table, -1 = padding.
        labels: [k, m]. mask: [k, m] bool, valid ones. allowed: [k, m, C] bool, the classes that each may have; None = all.
        beside: [k, b, …] numbers of the rows that the loss is made of beside labels; None = there are none.
        keys: [k, b] int64, of each row in this step of its client's turn; None = it is no step, its rows are only looked at.
        behind: of a blind batch, which has no rows itself, the one that it stands for, see
            :mod:`weft.federation.hidden_rows`. expected: [k] rows that are drawn for such a batch on average.
    """

    clients: Tensor | None
    index: np.ndarray
    labels: Tensor
    mask: Tensor
    allowed: Tensor | None = None
    beside: Tensor | None = None
    keys: Tensor | None = None
    behind: Batch | None = None
    expected: Tensor | None = None

    @property
    def dropping(self) -> Tensor | None:
        """The keys where a pass is one of training: in a step, and with a gradient, which teachers have not."""
        return self.keys if torch.is_grad_enabled() else None

    @property
    def valid(self) -> Tensor | None:
        """[k, b] bool, the rows that are no padding; None = all."""
        found = torch.from_numpy(self.index >= 0)
        return None if bool(found.all()) else found

    @property
    def sizes(self) -> Tensor:
        """[k] how many rows each client has in it; of a blind batch, how many are drawn on average."""
        if self.behind is not None and self.behind.expected is not None:
            return self.behind.expected
        return torch.from_numpy((self.index >= 0).sum(1)).to(self.mask.device)

    def own(self, clients: int) -> list[tuple[int, np.ndarray]]:
        """Whose rows it has, as an index into the pack of so many clients, and which rows of the table these are."""
        who = range(clients) if self.clients is None else self.clients.tolist()
        return [(client, rows[rows >= 0]) for client, rows in zip(who, self.index, strict=True)]

    def within(self, out: Output) -> Output:
        """An output without hope for classes that a row's labels could not have."""
        return out if self.allowed is None else out.within(self.allowed)

    def only(self, some: Tensor) -> Batch:
        """The rows of some of its clients, [k] bool."""
        clients = torch.arange(len(some), device=some.device) if self.clients is None else self.clients
        return replace(
            self,
            clients=clients[some],
            index=self.index[some.cpu().numpy()],
            labels=self.labels[some],
            mask=self.mask[some],
            allowed=None if self.allowed is None else self.allowed[some],
            beside=None if self.beside is None else self.beside[some],
            keys=None if self.keys is None else self.keys[some],
            behind=None if self.behind is None else self.behind.only(some),
            expected=None if self.expected is None else self.expected[some],
        )

    def of(self, values: Tensor) -> Tensor:
        """[K, …] values of the pack's clients -> [k, …] of those in the batch."""
        return values if self.clients is None else values.index_select(0, self.clients)


def make_batch(task: Task, table: Table, index: np.ndarray, present: list[int] | None, device: torch.device) -> Batch:
    """
    Args:
        index: [k, b] rows of the table, -1 = padding. present: positions of the k clients in their pack, None = all in order.
    """
    labels, mask = task.targets(table, index)
    clients = None if present is None else torch.tensor(present, device=device)
    allowed = None
    if table.allowed is not None:
        rows = torch.from_numpy(table.allowed[index] | (index < 0)[..., None]).to(device)
        allowed = rows.repeat_interleave(labels.shape[1] // max(index.shape[1], 1), 1)
    beside = table.beside(index)
    if beside is not None:
        beside = beside.to(device, torch.float32 if device.type == "mps" else beside.dtype)  # which has no float64
    return Batch(clients, index, labels.to(device), mask.to(device), allowed, beside)
