"""Rules whose clients remember over their turns, and whose server holds the mean of that."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from weft.federation.memory import Memory
from weft.federation.message import ClientInfo
from weft.federation.pack import Pack
from weft.federation.server import ServerState
from weft.rules.over import Over, Shares

WEIGHT = "weight"
"""First word of the names of what a mean is taken over, in the server's memo."""


class Remembering(Over):
    """A rule whose clients remember, and whose server holds the weighted mean of that.

    Attributes:
        mean: first word of the names of that in the server's memo.
    """

    stateful: ClassVar[bool] = True
    mean: ClassVar[str]

    # client -----------------------------------------------------------------------------------------------------------

    def memories(self, pack: Pack) -> list[Memory]:
        """Of the pack's clients."""
        return [Memory(client, self.word, turn) for client, turn in zip(pack.clients, pack.counted, strict=True)]

    # server -----------------------------------------------------------------------------------------------------------

    def put(self, server: ServerState, shares: Shares, name: str, value: Tensor) -> None:
        """Hold the mean of a tensor, and over how much it is taken."""
        server.memo[f"{self.mean}/{name}"] = value
        server.memo[f"{WEIGHT}/{name}"] = torch.as_tensor(shares.totals[name]).to(value)

    def welcome(self, server: ServerState, client: ClientInfo) -> None:
        super().welcome(server, client)
        shares = Shares(self, server)
        for name in [n.removeprefix(f"{self.mean}/") for n in server.memo if n.startswith(f"{self.mean}/")]:
            value = server.memo[f"{self.mean}/{name}"]  # a newcomer's part of it is 0
            before, after = server.memo[f"{WEIGHT}/{name}"], torch.as_tensor(shares.totals[name]).to(value)
            self.put(server, shares, name, value * torch.where(after > 0, before / after, 1.0))
