"""A client as the simulation holds it: what the server may know, what it remembers, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.federation.message import ClientInfo


@dataclass(frozen=True)
class Splits:
    """Positions of a client's rows in the token table of the run.

    Attributes:
        every: training rows of all periods, where they arrive in periods and ``train`` has those of one.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    every: np.ndarray | None = None


@dataclass
class ClientState(ClientInfo):
    """What lives at the client between rounds; written back only after a completed turn.

    Attributes:
        own: its facts before the server renewed any; None = it has renewed none.
        kept: KEEP tensors by name. memo: the method's own values. rounds_seen: completed turns.
        cached: rows of the table of which it keeps what the frozen backbone makes, by the number of blocks that they have left
            (``reference``: all); nothing where nobody counts operations.
    """

    data: Splits = field(default_factory=lambda: Splits(*[np.zeros(0, dtype=np.int64)] * 3))
    own: dict[str, Any] | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    rounds_seen: int = 0
    cached: dict[str, set[int]] = field(default_factory=dict)

    def cached_rows(self) -> dict[str, Tensor]:
        """What it keeps hidden states of, as tensors."""
        return {blocks: torch.tensor(sorted(rows)) for blocks, rows in self.cached.items()}

    def info(self, asks: tuple[str, ...]) -> ClientInfo:
        """What the server is told: only the facts that the method asks for."""
        return ClientInfo(self.id, self.n, {k: v for k, v in self.facts.items() if k in asks}, self.model)

    def renew(self, said: Mapping[str, Any]) -> None:
        """Have its own facts, but for those that the server says, see :meth:`weft.federation.server.ServerState.renew`."""
        self.own = self.facts if self.own is None else self.own
        self.facts = {**self.own, **said}
