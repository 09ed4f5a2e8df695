"""A simulated clock: how long rounds take on clients' devices, and what these draw. It divides, and nothing else: operations are
counted where passes run, and bytes where they are billed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.devices.availability import DAY, HOUR, Hours
from weft.devices.batteries import Batteries
from weft.devices.grids import Grid
from weft.devices.profiles import Device
from weft.devices.thrift import Thrift
from weft.devices.told import span
from weft.errors import UserError

ANY = Hours()
UNKNOWN = 1e12
"""Operations that every turn is taken to have before any was played: which clients cost less follows from their devices alone."""


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
        grids: that clients draw from; nobody's = no carbon is told. floor: of batteries, below which clients are not drawn.
        thrift: says who is drawn, by the carbon of their turns; None = a lot does.
        now: seconds since it began. joules, grams: so far. waited: seconds since the last round, when nobody could be reached.
        turns: operations, bytes down and bytes up of the last turn of each client.
    """

    devices: Mapping[str, Device]
    deadline: float | None = None
    hours: Mapping[str, Hours] = field(default_factory=dict)
    hour: float = 0.0
    grids: Mapping[str, Grid] = field(default_factory=dict)
    floor: float = 0.0
    thrift: Thrift | None = None
    now: float = 0.0
    joules: float = 0.0
    grams: float = 0.0
    waited: float = 0.0
    turns: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batteries = Batteries(self.devices, self.floor)

    # who is there ---------------------------------------------------------------------------------------------------

    def there(self, client: str, moment: float) -> bool:
        """Whether it can be drawn then."""
        return self._hours(client).until(moment) > moment >= self.now + self.batteries.wait(client)

    def first(self, clients: Iterable[str]) -> float:
        """The moment, from now on, at which the first of them can be drawn; infinity = never."""
        return min((self._hours(c).next(self.now + self.batteries.wait(c)) for c in clients), default=self.now)

    def wait(self, moment: float) -> str:
        """Move on to a moment, as nobody can be reached before; what is said of that."""
        before, self.waited = self.now, moment - self.now
        self.now = moment
        self.batteries.passed(self.waited, {})
        return f"nobody is available at {self.told(before)}: the clock moves on by {span(self.waited)}, to {self.told(moment)}."

    def told(self, moment: float) -> str:
        """For people: ``06:00 of day 1``."""
        day, second = divmod(round(self.hour * HOUR + moment), round(DAY))
        return f"{second // 3600:02d}:{second // 60 % 60:02d} of day {day + 1}"

    def _hours(self, client: str) -> Hours:
        return self.hours.get(client, ANY)

    # what turns cost ------------------------------------------------------------------------------------------------

    def cost(self, client: str, moment: float) -> tuple[float, float]:
        """Joules and grams of a client's next turn, if it begins then: like its last, or those of others in the mean."""
        device, spent = self.devices[client], self._expected(client)
        joules = device.joules(*spent)
        return joules, self._grams(client, joules, moment, device.seconds(*spent))

    def order_at(self, moment: float) -> Callable[[Sequence[str], Sequence[int]], list[str]] | None:
        """Says in which order clients are taken into a round that begins then, given a lot for each; None = by lot alone."""
        if (thrift := self.thrift) is None:
            return None
        return lambda clients, lot: thrift.order({c: self.cost(c, moment)[1] for c in clients}, lot)

    def _expected(self, client: str) -> tuple[float, float, float]:
        if client in self.turns:
            return self.turns[client]
        if not self.turns:
            return UNKNOWN, 0.0, 0.0
        flops, down, up = (math.fsum(turn[i] for turn in self.turns.values()) / len(self.turns) for i in range(3))
        return flops, down, up

    def _grams(self, client: str, joules: float, moment: float, seconds: float) -> float:
        begin = self.hour * HOUR + moment
        return self.grids[client].of(joules, begin, begin + seconds) if client in self.grids else 0.0

    # a round --------------------------------------------------------------------------------------------------------

    def seconds(self, client: str, spent: Spent) -> float:
        """Of one client's round."""
        return self.devices[client].seconds(spent.flops, spent.down, spent.up)

    def gone(self, spent: Mapping[str, Spent]) -> dict[str, float]:
        """Clients that go away in the middle of their turns, or run out of battery, with the seconds after which they do."""
        found = {}
        for client, own in sorted(spent.items()):
            seconds, joules = self.seconds(client, own), self.devices[client].joules(own.flops, own.down, own.up)
            stays = min(self._hours(client).until(self.now) - self.now, self.batteries.lasts(client, joules, seconds))
            if own.answered and stays < min(seconds, self.deadline or math.inf):
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
        drawn, grams = dict[str, float](), 0.0
        for client, own in sorted(spent.items()):
            seconds = self.seconds(client, own)
            stayed = gone.get(client, seconds)
            part = stayed / seconds if client in gone else 1.0
            drawn[client] = part * self.devices[client].joules(own.flops, own.down, own.up)
            grams += self._grams(client, drawn[client], self.now, stayed)
            if own.answered:
                self.turns[client] = own.flops, own.down, own.up
        slowest = max(times, key=lambda c: (times[c], c), default=None)
        waited, self.waited = self.waited, 0.0
        joules = sum(drawn.values())
        self.now += lasted
        self.joules += joules
        self.grams += grams
        self.batteries.passed(lasted, drawn)
        return Tick(lasted, self.now, joules, list(late), slowest, sorted(gone), waited, grams if self.grids else None)

    def reach(self, now: float, spent: Mapping[str, Spent], began: Mapping[str, float], last: str | None) -> Tick:
        """The server updates its model at a moment, without waiting for whoever is still at work.

        Args:
            spent: by those whose turns have ended since its last update. began: when; those that are not in it now, and failed.
            last: who came last.
        """
        drawn, grams = 0.0, 0.0
        for client, own in sorted(spent.items()):
            joules = self.devices[client].joules(own.flops, own.down, own.up)
            grams += self._grams(client, joules, began.get(client, self.now), self.seconds(client, own))
            drawn += joules
        lasted, self.now = now - self.now, now
        self.joules += drawn
        self.grams += grams
        return Tick(lasted, now, drawn, slowest=last, grams=grams if self.grids else None)

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        turns = {client: list(turn) for client, turn in self.turns.items()}
        owed = {} if self.thrift is None else self.thrift.owed
        spent = {"now": self.now, "joules": self.joules, "grams": self.grams}
        return spent | {"turns": turns, "levels": self.batteries.levels, "owed": owed}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Undo :meth:`saved`."""
        self.now, self.joules, self.grams = saved["now"], saved["joules"], saved.get("grams", 0.0)
        self.turns = {client: (flops, down, up) for client, (flops, down, up) in saved.get("turns", {}).items()}
        self.batteries.levels |= saved.get("levels", {})
        if self.thrift is not None:
            self.thrift.owed = dict(saved.get("owed", {}))


@dataclass(frozen=True)
class Tick:
    """One round on the clock.

    Attributes:
        seconds: that it lasted. now: on the clock at its end. joules: of all devices. late: clients that missed the deadline.
        slowest: who was waited for, deadline or not; None = nobody. gone: clients that went away in the middle of their turns.
        waited: seconds before it, in which nobody could be reached. grams: of CO₂; None = no grid is known.
    """

    seconds: float
    now: float
    joules: float
    late: list[str] = field(default_factory=list)
    slowest: str | None = None
    gone: list[str] = field(default_factory=list)
    waited: float = 0.0
    grams: float | None = None
