"""What a client adds up over its turns, kept in step with what the server has counted.

A client moves on when its turn ends, and the server when it reads the update: an answer that comes too late, a round that is
undone or a server that goes back to an older state would leave the two apart for good. So a client remembers what it had before
its last turn, and is told which of its turns was the last that counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.federation.client import ClientState

NONE = -1
"""The round of a client none of whose turns has counted."""


class Memory:
    """Of one client: values by name, as they are now, and as they were before its last turn.

    Args:
        client: whose own memory it lies in. word: first of the names there. counted: the round of its last turn that counted.
        exact: where that is neither its last turn nor the one before, it begins anew; else it stays with the older of the two,
            the nearest that it has.
    """

    def __init__(self, client: ClientState, word: str, counted: int, exact: bool = False):
        self.memo, self.word = client.memo, word
        now, before = self._turns()
        if counted == now:
            return
        if exact and counted != before:
            for name in [n for n in self.memo if n.startswith(f"{word}/")]:
                del self.memo[name]
            return
        self.memo |= {f"{word}/now/{n}": v for n, v in self._held("before").items()}
        self.memo[f"{word}/turns"] = [before, before]

    def _turns(self) -> tuple[int, int]:
        """The rounds of the last turn and of the one before."""
        now, before = self.memo.get(f"{self.word}/turns", (NONE, NONE))
        return now, before

    def _held(self, when: str) -> dict[str, Tensor]:
        prefix = f"{self.word}/{when}/"
        return {n.removeprefix(prefix): v for n, v in self.memo.items() if n.startswith(prefix)}

    def all(self) -> dict[str, Tensor]:
        """The values now."""
        return self._held("now")

    def get(self, name: str) -> Tensor | None:
        return self.memo.get(f"{self.word}/now/{name}")

    def add(self, changes: Mapping[str, Tensor], turn: int) -> None:
        """The end of a turn. A change of another size than what it is added to begins anew."""
        for name in self._held("before"):
            del self.memo[f"{self.word}/before/{name}"]
        for name, change in changes.items():
            old = self.get(name)
            before = torch.zeros_like(change) if old is None or old.shape != change.shape else old
            self.memo |= {f"{self.word}/before/{name}": before, f"{self.word}/now/{name}": before + change}
        self.memo[f"{self.word}/turns"] = [turn, self._turns()[0]]
