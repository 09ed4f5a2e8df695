"""Who is at work on simulated devices while nobody waits for anybody: turns that have begun, and the order in which they end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Flight:
    """One turn that has begun.

    Attributes:
        version: of the model that the client was sent, counted in updates of the server. began, arrives: seconds on the clock.
    """

    client: str
    version: int
    began: float
    arrives: float


class Timeline:
    """Turns under way.

    Attributes:
        concurrency: how many there may be at any moment. now: seconds on the clock. under_way: by client.
    """

    def __init__(self, concurrency: int, now: float = 0.0, under_way: Iterable[Flight] = ()):
        self.concurrency, self.now = concurrency, now
        self.under_way = {f.client: f for f in under_way}

    @property
    def free(self) -> int:
        """How many more turns may begin now."""
        return self.concurrency - len(self.under_way)

    def start(self, client: str, version: int, seconds: float) -> Flight:
        """A turn begins now, and takes so long."""
        flight = self.under_way[client] = Flight(client, version, self.now, self.now + seconds)
        return flight

    @property
    def landing(self) -> bool:
        """Whether a turn ends at this very moment: it is taken in before anybody is sent out."""
        return any(f.arrives <= self.now for f in self.under_way.values())

    def land(self) -> Flight | None:
        """The next turn to end, and it is then; of several the first by id, None if none is under way."""
        first = min(self.under_way.values(), key=lambda f: (f.arrives, f.client), default=None)
        if first is not None:
            del self.under_way[first.client]
            self.now = max(self.now, first.arrives)
        return first
