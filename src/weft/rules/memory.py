"""What a client of a stateful rule adds up over its turns, kept in step with what the server has counted.

A client moves on when its turn ends, and the server when it reads the update: an answer that comes too late, a round that is
undone or a server that goes back to an older state would leave the two apart for good. So a client remembers what it had before
its last turn, and the server tells it which of its turns was the last that counted, where it need not be the last that there was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.federation.client import ClientState
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.server import ServerState
from weft.rules.over import Over, Shares

COUNTED = "counted"
"""The key of the fact, and of what the server notes: client -> [the clock then, the round]."""
NONE = -1
"""The round of a client none of whose turns has counted."""
WEIGHT = "weight"
"""First word of the names of what a mean is taken over, in the server's memo."""


class Memory:
    """Of one client: values by name, as they are now, and as they were before its last turn.

    Args:
        client: whose own memory it lies in. word: of the rule. counted: the last turn that counted, None = its last.
    """

    def __init__(self, client: ClientState, word: str, counted: int | None):
        self.memo, self.word = client.memo, word
        if counted is not None and counted != self._turns()[0]:
            self.memo |= {f"{word}/now/{n}": v for n, v in self._held("before").items()}
            self.memo[f"{word}/turns"] = [self._turns()[1], self._turns()[1]]

    def _turns(self) -> tuple[int, int]:
        """The rounds of the last turn and of the one before."""
        now, before = self.memo.get(f"{self.word}/turns", (NONE, NONE))
        return now, before

    def _held(self, when: str) -> dict[str, Tensor]:
        prefix = f"{self.word}/{when}/"
        return {n.removeprefix(prefix): v for n, v in self.memo.items() if n.startswith(prefix)}

    def get(self, name: str) -> Tensor | None:
        return self.memo.get(f"{self.word}/now/{name}")

    def add(self, changes: Mapping[str, Tensor], turn: int) -> None:
        """The end of a turn."""
        for name in self._held("before"):
            del self.memo[f"{self.word}/before/{name}"]
        for name, change in changes.items():
            old = self.get(name)
            before = torch.zeros_like(change) if old is None or old.shape != change.shape else old
            self.memo |= {f"{self.word}/before/{name}": before, f"{self.word}/now/{name}": before + change}
        self.memo[f"{self.word}/turns"] = [turn, self._turns()[0]]


class Remembering(Over):
    """A rule whose clients remember, and whose server holds the weighted mean of that.

    Attributes:
        mean: first word of the names of that in the server's memo.
    """

    tells: ClassVar[tuple[str, ...]] = (COUNTED,)
    stateful: ClassVar[bool] = True
    mean: ClassVar[str]

    # client -----------------------------------------------------------------------------------------------------------

    def memories(self, pack: Pack) -> list[Memory]:
        """Of the pack's clients."""
        pairs = zip(pack.clients, pack.facts, strict=True)
        return [Memory(client, self.word, facts.get(COUNTED)) for client, facts in pairs]

    # server -----------------------------------------------------------------------------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        clock, turn = server.memo.get(COUNTED, {}).get(client.id, (0, NONE))
        since = server.synced.get(client.id, 0)
        known = clock == since + 1 if clock else since == 0 and server.clock == 1
        return message if known else replace(message, facts=message.facts | {COUNTED: turn})

    def noted(self, server: ServerState, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, each of which counts from now on."""
        counted = server.memo[COUNTED] = dict(server.memo.get(COUNTED, {}))
        for update in updates:
            counted[update.client.id] = [server.clock, server.round.index]
            yield update

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
