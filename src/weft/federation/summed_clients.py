"""A round of which the server learns one sum: what becomes of it, and in a simulation, what it is made of.

Each client's change is clipped, made whole numbers (:mod:`weft.federation.sum_code`), and added up modulo 2³². Between sites a
protocol gives the sum (:mod:`weft.privacy.sums`); a simulation adds the same numbers, so that both have the same mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.communication.strict import Refused
from weft.errors import UserError
from weft.federation.message import ClientInfo, Update
from weft.federation.one_mean import OneMean, changed, spread
from weft.federation.server import ServerState
from weft.federation.sum_code import SumCode
from weft.federation.sum_layout import SumLayout
from weft.privacy.hiding import Privacy
from weft.privacy.secret import Secret
from weft.tensors.forms import Value
from weft.words import count as many

if TYPE_CHECKING:
    from weft.federation.method import Method


@dataclass(frozen=True)
class Sum:
    """What a server gets of a round.

    Attributes:
        total: uint32, of the vectors of all clients in it, modulo 2³².
        clients: their ids, sorted.
    """

    total: np.ndarray
    clients: tuple[str, ...]


class SummedClients:
    """One round of a server.

    Attributes:
        code: of the vectors.

    Raises:
        UserError: noise would not hide who takes part; or see :class:`~weft.federation.sum_code.SumCode`.
    """

    def __init__(self, method: Method, server: ServerState, privacy: Privacy):
        link = privacy.summed
        assert link is not None
        self.server, self.privacy, self.link = server, privacy, link
        self.one = OneMean(method, server)
        self.code = SumCode(privacy, SumLayout.of(self.one), alike(method, privacy))
        everybody = len(server.clients)
        count, name = self._fewest(server.clients)
        if 0 < count < self.link.least <= everybody:
            raise UserError(
                f"{many(count, 'client')} alone may send some of {name}, and a sum of {self.link.name} is of {self.link.least} "
                "or more: give clients one size, or choose another method."
            )
        if self.code.noisy and any(self.one.kinds(n) != {s: everybody} for n, (s, _) in self.code.layout.shapes.items()):
            raise UserError(
                "clients have parts of different sizes, by which the model tells who was in a sum: "
                f"leave dp-fedavg or {self.link.name} out."
            )

    def added(self, updates: Iterable[Update], held: Mapping[str, Mapping[str, Value]]) -> Sum:
        """The sum over updates in this process.

        Args:
            held: by client, what its update began from.
        """
        total, who = np.zeros(self.code.length, np.uint32), []
        for update in updates:
            change = changed(update.tensors, held[update.client.id], self.link.name)
            total += self.code.encoded(change, update.weight, noise(self.privacy, self.server.round.index, update.client.id))
            who.append(update.client.id)
        return Sum(total, tuple(who))

    def check(self, clients: Collection[str]) -> None:
        """See that a sum over these clients is of enough of them in every entry, before it is known.

        Args:
            clients: ids.

        Raises:
            Refused: it is not.
        """
        if len(clients) < self.link.least:
            raise Refused(f"Only {len(clients)} clients are left, where a sum is of {self.link.least} or more.")
        count, name = self._fewest([c for c in self.server.clients if c.id in clients])
        if 0 < count < self.link.least:
            raise Refused(
                f"Only {count} of those who are left may send some of {name}, where a sum is of {self.link.least} or more."
            )

    def _fewest(self, clients: Sequence[ClientInfo]) -> tuple[int, str]:
        """Of how few of these clients any entry is that one of them may send, and of which tensor; 0 of none."""
        found = []
        for name, (whole, _) in self.code.layout.shapes.items():
            counts = Counter(own[name] for own in map(self.one.own, clients) if name in own)
            if len(counts) == 1:
                found.append((counts.total(), name))
            elif counts:
                entries = spread(whole, counts)
                found.append((int(entries[entries > 0].min()), name))
        return min(found, default=(0, ""))

    def passing(self, found: Sum) -> Iterator[Update]:
        """Updates that are all made of the mean.

        Raises:
            Refused: the sum is of fewer clients than may be in one, or in an entry of it; or there is no mean.
        """
        if not found.clients:
            return iter(())
        self.check(found.clients)
        people: dict[str, ClientInfo] = {c.id: c for c in self.server.clients}
        expected = None
        if self.code.noisy:
            expected = {n: self.privacy.chance * self.one.holders(n) for n in self.code.layout.shapes}
        mean = self.code.mean(found.total, expected)
        return self.one.given((people[c] for c in found.clients), mean)


def alike(method: Method, privacy: Privacy) -> bool:
    """Whether all clients count alike in a sum."""
    return privacy.hides_clients or method.weighting == "uniform"


def noise(privacy: Privacy, round: int, client: str) -> Secret:
    """What a client's part of the noise is made from."""
    return privacy.secret("sum", round, client)
