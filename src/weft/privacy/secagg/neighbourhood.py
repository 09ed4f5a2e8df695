"""Who shares a mask with whom: a graph in which all clients have the same number of neighbours, the same for all who draw it.

It is the one of Bell et al. (CCS 2020, section 3): clients stand in a ring in random order, and each is a neighbour of the next
k/2 on both sides. The order follows from the names of run, round and clients by SHA-256, so that each client can draw it too. A
server may still choose the clients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from weft.communication.strict import Refused, quoted, write_json
from weft.privacy.sums.sum_terms import SumTerms


@dataclass(frozen=True)
class Neighbourhood:
    """The graph over those who have told keys.

    Attributes:
        terms: of the sum.
        ids: of the clients, sorted, two or more.
        threshold: t, for the secrets of each of them.
    """

    terms: SumTerms
    ids: tuple[str, ...]
    threshold: int = field(init=False)
    _neighbours: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n, degree = len(self.ids), self.terms.neighbours(len(self.ids))
        object.__setattr__(self, "threshold", self.terms.threshold(degree + 1))
        ring = sorted(self.ids, key=self._place)
        if degree == n - 1:
            steps: Sequence[int] = range(1, n)
        else:
            steps = [s for step in range(1, degree // 2 + 1) for s in (step, -step)]
        found = {u: tuple(sorted(ring[(i + s) % n] for s in steps)) for i, u in enumerate(ring)}
        object.__setattr__(self, "_neighbours", found)

    def of(self, client: str) -> tuple[str, ...]:
        """A client's neighbours, sorted."""
        return self._neighbours[client]

    def holders(self, client: str) -> tuple[str, ...]:
        """Who holds a share of a client's secrets, in the order of the shares: its neighbours and itself, sorted."""
        return tuple(sorted((client, *self._neighbours[client])))

    def is_connected(self, among: Collection[str]) -> bool:
        """Whether these clients hang together by masks. If not, the sums over the parts are known one by one."""
        left = set(among)
        reached = [left.pop()]
        while reached:
            new = left.intersection(self._neighbours[reached.pop()])
            left -= new
            reached += new
        return not left

    def undone(self, before: Collection[str], summed: Collection[str]) -> list[str]:
        """Of those who have told shares (``before``), whose masks must be taken off the sum over ``summed``: these clients' own
        masks, and the masks that their neighbours among the others have left in it."""
        inside = set(summed)
        return [u for u in before if u in inside or inside.intersection(self.of(u))]

    def check_holders(self, undone: Collection[str], left: Collection[str]) -> None:
        """Raises: Refused: fewer than the threshold of those who hold shares of one of these clients are left."""
        alive = set(left)
        for client in undone:
            holders = len(alive.intersection(self.holders(client)))
            if holders < self.threshold:
                raise Refused(
                    f"Only {holders} of those who hold shares of {quoted(client)} are left, where undoing its masks takes "
                    f"{self.threshold}."
                )

    def check(self, before: Collection[str], left: Collection[str]) -> None:
        """See that a sum over those who are left can be told, and is one that may be.

        Args:
            before: who had come to the step before. left: who of them has come through it.

        Raises:
            Refused: too few are left, in all or of a client's holders, or they hang together no longer.
        """
        if len(left) < self.terms.least:
            raise Refused(f"Only {len(left)} clients are left, where a sum is of {self.terms.least} or more.")
        self.check_holders(self.undone(before, left), left)
        if not self.is_connected(left):
            raise Refused(
                "The clients that are left fall into parts which share no masks, so that each part's sum would be known."
            )

    def _place(self, client: str) -> tuple[bytes, str]:
        name = write_json({"run": self.terms.run, "round": self.terms.round, "client": client})
        return hashlib.sha256(name).digest(), client
