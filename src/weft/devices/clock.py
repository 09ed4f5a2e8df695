"""A simulated clock: how long rounds take on clients' devices, and what these draw. It divides, and nothing else: operations are
counted where passes run, and bytes where they are billed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.devices.availability import DAY, HOUR, Hours
from weft.devices.profiles import Device
from weft.devices.told import span
from weft.errors import UserError

ANY = Hours()


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
        hours: when clients can be reached, those that can't be at any time. hour: of the day at which the clock begins.
        now: seconds since then. joules: so far. waited: seconds since the last round, in which nobody could be reached.
    """

    devices: Mapping[str, Device]
    deadline: float | None = None
    hours: Mapping[str, Hours] = field(default_factory=dict)
    hour: float = 0.0
    now: float = 0.0
    joules: float = 0.0
    waited: float = 0.0

    # who is there ---------------------------------------------------------------------------------------------------

    def there(self, client: str, moment: float) -> bool:
        """Whether it can be drawn then."""
        return self._hours(client).until(moment) > moment

    def first(self, clients: Iterable[str]) -> float:
        """The moment, from now on, at which the first of them can be drawn; infinity = never."""
        return min((self._hours(c).next(self.now) for c in clients), default=self.now)

    def wait(self, moment: float) -> str:
        """Move on to a moment, as nobody can be reached before; what is said of that."""
        before, self.waited = self.now, moment - self.now
        self.now = moment
        return f"nobody is available at {self.told(before)}: the clock moves on by {span(self.waited)}, to {self.told(moment)}."

    def told(self, moment: float) -> str:
        """For people: ``06:00 of day 1``."""
        day, second = divmod(round(self.hour * HOUR + moment), round(DAY))
        return f"{second // 3600:02d}:{second // 60 % 60:02d} of day {day + 1}"

    def _hours(self, client: str) -> Hours:
        return self.hours.get(client, ANY)

    # a round --------------------------------------------------------------------------------------------------------

    def seconds(self, client: str, spent: Spent) -> float:
        """Of one client's round."""
        return self.devices[client].seconds(spent.flops, spent.down, spent.up)

    def gone(self, spent: Mapping[str, Spent]) -> dict[str, float]:
        """Clients that go away in the middle of their turns, with the seconds after which they do."""
        found = {}
        for client, own in sorted(spent.items()):
            stays = self._hours(client).until(self.now) - self.now
            if own.answered and stays < min(self.seconds(client, own), self.deadline or math.inf):
                found[client] = stays
        return found

    def late(self, spent: Mapping[str, Spent]) -> list[str]:
        """Clients whose turns end behind the deadline.

        Raises:
            UserError: all are that have not gone.
        """
        gone = self.gone(spent)
        times = {c: self.seconds(c, s) for c, s in spent.items() if s.answered and c not in gone}
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
        """The round is over: with its slowest client, or when that has gone, or with the deadline that some have missed."""
        gone = self.gone(spent)
        times = {c: self.seconds(c, s) for c, s in spent.items() if s.answered} | gone
        lasted = max(times.values(), default=0.0)
        if late and self.deadline is not None:
            lasted = self.deadline
        drawn = 0.0
        for client, own in sorted(spent.items()):
            part = gone[client] / self.seconds(client, own) if client in gone else 1.0
            drawn += part * self.devices[client].joules(own.flops, own.down, own.up)
        slowest = max(times, key=lambda c: (times[c], c), default=None)
        waited, self.waited = self.waited, 0.0
        self.now += lasted
        self.joules += drawn
        return Tick(lasted, self.now, drawn, list(late), slowest, sorted(gone), waited)

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
        slowest: who was waited for, deadline or not; None = nobody. gone: clients that went away in the middle of their turns.
        waited: seconds before it, in which nobody could be reached.
    """

    seconds: float
    now: float
    joules: float
    late: list[str] = field(default_factory=list)
    slowest: str | None = None
    gone: list[str] = field(default_factory=list)
    waited: float = 0.0
