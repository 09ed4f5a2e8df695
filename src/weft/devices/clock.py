"""A simulated clock: how long rounds take on clients' devices, and what these draw. It divides, and nothing else: operations are
counted where passes run, and bytes where they are billed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.devices.profiles import Device
from weft.errors import UserError


@dataclass(frozen=True)
class Spent:
    """What one client's round took.

    Attributes:
        flops: operations. down, up: bytes. answered: it came to the end of its turn; nobody waits for whoever fails.
    """

    flops: float
    down: float
    up: float
    answered: bool = True


@dataclass
class Clock:
    """Time on simulated devices.

    Attributes:
        devices: by client. deadline: seconds after which a round is closed; None = when the last client is there.
        now: seconds since the first round began. joules: so far.
    """

    devices: Mapping[str, Device]
    deadline: float | None = None
    now: float = 0.0
    joules: float = 0.0

    def seconds(self, client: str, spent: Spent) -> float:
        """Of one client's round."""
        return self.devices[client].seconds(spent.flops, spent.down, spent.up)

    def late(self, spent: Mapping[str, Spent]) -> list[str]:
        """Clients whose turns end behind the deadline.

        Raises:
            UserError: all are.
        """
        times = {c: self.seconds(c, s) for c, s in spent.items() if s.answered}
        if self.deadline is None or not times:
            return []
        found = sorted(c for c, seconds in times.items() if seconds > self.deadline)
        if len(found) == len(times):
            first = min(times, key=lambda c: (times[c], c))
            raise UserError(
                f"no client of the cohort is done by the deadline of {self.deadline:g} s: the first would be {first} "
                f"({self.devices[first].name}) after {times[first]:.4g} s; give a longer --deadline or other --devices."
            )
        return found

    def tick(self, spent: Mapping[str, Spent], late: list[str]) -> Tick:
        """The round is over: with its slowest client, or with the deadline that some have missed."""
        times = {c: self.seconds(c, s) for c, s in spent.items() if s.answered}
        lasted = max(times.values(), default=0.0)
        if late and self.deadline is not None:
            lasted = self.deadline
        drawn = sum(self.devices[c].joules(s.flops, s.down, s.up) for c, s in sorted(spent.items()))
        self.now += lasted
        self.joules += drawn
        slowest = max(times, key=lambda c: (times[c], c), default=None)
        return Tick(lasted, self.now, drawn, list(late), slowest)

    def reach(self, now: float, spent: Mapping[str, Spent], last: str | None) -> Tick:
        """The server updates its model at a moment, without waiting for whoever is still at work.

        Args:
            spent: by those whose turns have ended since its last update. last: who came last.
        """
        drawn = sum(self.devices[c].joules(s.flops, s.down, s.up) for c, s in sorted(spent.items()))
        lasted, self.now = now - self.now, now
        self.joules += drawn
        return Tick(lasted, now, drawn, slowest=last)

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"now": self.now, "joules": self.joules}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Undo :meth:`saved`."""
        self.now, self.joules = saved["now"], saved["joules"]


@dataclass(frozen=True)
class Tick:
    """One round on the clock.

    Attributes:
        seconds: that it lasted. now: on the clock at its end. joules: of all devices. late: clients that missed the deadline.
        slowest: who was waited for, deadline or not; None = nobody.
    """

    seconds: float
    now: float
    joules: float
    late: list[str] = field(default_factory=list)
    slowest: str | None = None
