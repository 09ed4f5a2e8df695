"""The losses of a round's clients, as their packs train."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from weft.federation.batch import Batch
from weft.federation.pack import Pack


class Losses:
    """Listens to packs (:attr:`Pack.listener`).

    Args:
        clients: ids. step: is called after each step of a pack.
    """

    def __init__(self, clients: Iterable[str], step: Callable[[], None] | None = None):
        self._found: dict[str, list[Tensor]] = {c: [] for c in clients}
        self._step = step

    def __call__(self, pack: Pack, batch: Batch, loss: Tensor) -> None:
        """
        Args:
            loss: (clients of the batch,), a mean over each one's rows.
        """
        rows = range(len(pack.clients)) if batch.clients is None else batch.clients.tolist()
        for row, value in zip(rows, loss.detach().cpu(), strict=True):
            self._found[pack.clients[row].id].append(value)
        if self._step is not None:
            self._step()

    def steps(self, client: str) -> int:
        return len(self._found[client])

    def means(self) -> dict[str, float]:
        """Mean over steps, of each client that took any."""
        return {c: float(torch.stack(v).mean()) for c, v in self._found.items() if v}
