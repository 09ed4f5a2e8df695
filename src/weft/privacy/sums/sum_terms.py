"""What the clients and the server of a secure sum have agreed on before its first question."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from weft.errors import UserError

LONGEST = 256
"""Characters of the name of a run, and of a client's."""

SMALL = 16
"""Fewest neighbours by default: up to 17 clients, each shares a mask with each."""


@dataclass(frozen=True)
class SumTerms:
    """Of one sum. A client takes them from its own settings, never from a question.

    Attributes:
        run: names the run, the same for all.
        round: index of the round, from 0.
        length: integers in a client's vector.
        width: bytes of each on the wire: sums are modulo 2^(8·width).
        least: fewest clients in a sum. Of a sum of two, each of both knows the other's part.
        degree: neighbours of a client, an even number; None for max(16, 2⌈log₂ n⌉) among n clients, all others where there are
            not more. It grows as in Bell et al.; what they prove of a graph for a share of dishonest clients asks for more
            neighbours.
        share: part of those who hold shares of a client's secrets (its neighbours and itself) that can undo them, and without
            which nobody can.

    Raises:
        UserError: for values out of range.
    """

    run: str
    round: int
    length: int
    width: int = 4
    least: int = 3
    degree: int | None = None
    share: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 < len(self.run) <= LONGEST:
            raise UserError(f"a run has a name of 1 to {LONGEST} characters, not {len(self.run)}: give such.")
        if self.round < 0 or self.length < 1 or self.width not in (1, 2, 3, 4):
            raise UserError(
                "a secure sum is of a round from 0, of 1 integer or more, and of integers of 1 to 4 bytes: give such."
            )
        if self.least < 2:
            raise UserError(f"a sum of {self.least} is a client's own vector: let secure sums be of 2 clients or more.")
        if self.degree is not None and (self.degree < 2 or self.degree % 2):
            raise UserError(f"{self.degree} neighbours can't be had in a ring: give an even number from 2.")
        if not 0.5 < self.share <= 1:
            raise UserError(
                f"a threshold of {self.share:g} of the shares lets a lying server undo a client: give more than 0.5, at most 1."
            )

    def neighbours(self, clients: int) -> int:
        """Of each among so many clients."""
        degree = self.degree or max(SMALL, 2 * math.ceil(math.log2(max(clients, 2))))
        return min(clients - 1, degree)

    def threshold(self, holders: int) -> int:
        """t: how many of the shares of a secret undo it. It is more than half of them."""
        return max(holders // 2 + 1, math.ceil(round(self.share * holders, 9)))  # 2/3 of 3 is 2, whatever a float makes of it

    def saved(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def loaded(cls, saved: dict[str, Any]) -> Self:
        return cls(**saved)
