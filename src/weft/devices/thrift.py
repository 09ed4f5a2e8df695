"""Who is drawn where turns are to cost little: first whoever is owed a turn, then the cheapest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

ALIKE = 1.1
"""Costs are told apart in powers of this."""


@dataclass
class Thrift:
    """Greedy, with a floor of fairness.

    Each round owes every client ``share`` of the turns that it would have by lot, and a turn pays for one. Whoever is owed a turn
    comes first, who is owed most before the others; all others come by the cost of their turns. Turns whose costs differ by some
    tenth are alike: of them comes first who has had the fewest, and then a lot decides. So cheap clients take turns.

    Attributes:
        share: 0 = nobody is owed anything; 1 = all have about as many turns in the end.
        owed: turns, by client. Parts of one in the beginning, so that not all fall due in the same rounds, with none but the
            cheapest in all rounds between.
    """

    share: float
    owed: dict[str, float] = field(default_factory=dict)

    def order(self, costs: Mapping[str, float], lot: Sequence[int]) -> list[str]:
        """Clients in the order in which they are taken.

        Args:
            costs: of a turn, by client. lot: a number for each.
        """

        def key(entry: tuple[str, int]) -> tuple[float, float, float, int]:
            client, number = entry
            owed = round(self.owed.get(client, 0.0), 9)  # sums of shares differ by rounding
            size = round(math.log(costs[client], ALIKE)) if costs[client] > 0 else -math.inf
            return (-owed if owed >= 1 else 0.0, size, -owed, number)

        return [client for client, _ in sorted(zip(costs, lot, strict=True), key=key)]

    def took(self, clients: Collection[str], chosen: Collection[str]) -> None:
        """A round has drawn some of these clients."""
        for client in clients:
            self.owed[client] = self.owed.get(client, 0.0) + self.share * len(chosen) / len(clients) - (client in chosen)
