"""Rows that arrive in periods: in each, a client trains on those that are new, and never again on earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from weft.federation.client import ClientState


@dataclass(frozen=True)
class Arrivals:
    """When the rows of a table arrive.

    Attributes:
        of_row: int64 [n], the period of each row, from 0; -1 = it is there all the time.
        periods: how many there are.
    """

    of_row: np.ndarray
    periods: int

    def among(self, rows: np.ndarray, period: int) -> np.ndarray:
        """Those of ``rows`` (positions in the table) that arrive in a period."""
        return rows[self.of_row[rows] == period]

    def enter(self, client: ClientState, period: int) -> None:
        """Let a client train on the rows of a period, and on those that are there all the time."""
        every = client.data.train if client.data.every is None else client.data.every
        if not len(every):  # they are elsewhere
            return
        mine = every[np.isin(self.of_row[every], (period, -1))]
        client.data, client.n = replace(client.data, train=mine, every=every), len(mine)


def period_at(t: int, rounds: int, periods: int) -> int:
    """The period of round ``t`` where so many rounds are shared out among periods, as evenly as can be; the last round's is the
    last, also where there are fewer rounds than periods.
    """
    return min(((t + 1) * periods - 1) // max(rounds, 1), periods - 1)
