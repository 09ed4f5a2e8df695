"""When clients can be reached: hours of each day, or spans of a trace."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.devices.small_tables import rows
from weft.errors import UserError
from weft.words import count

HOUR = 3600.0
DAY = 24 * HOUR
ALWAYS = "always"


@dataclass(frozen=True)
class Hours:
    """When one client can be reached.

    Attributes:
        spans: (from, to) in seconds, in order and apart; to itself is outside.
        every: seconds after which they come again, within which each begins; None = they do not.
    """

    spans: tuple[tuple[float, float], ...] = ((0.0, math.inf),)
    every: float | None = None

    @classmethod
    def of(cls, spans: Iterable[tuple[float, float]], every: float | None = None) -> Hours:
        """Of spans in any order, which may touch and overlap, and with ``every`` end behind it."""
        found: list[tuple[float, float]] = []
        for begin, end in sorted((b % every, b % every + (e - b)) if every else (b, e) for b, e in spans):
            if found and begin <= found[-1][1]:
                begin, end = found[-1][0], max(end, found.pop()[1])
            found.append((begin, end))
        while every and len(found) > 1 and found[-1][1] >= found[0][0] + every:  # one goes on where another began
            first = found.pop(0)
            found[-1] = (found[-1][0], max(found[-1][1], first[1] + every))
        if every and found and found[-1][1] - found[-1][0] >= every:
            return cls()
        return cls(tuple(found), every)

    def until(self, moment: float) -> float:
        """When it goes away; the moment itself, if it is away then."""
        return next((end for begin, end in self._near(moment) if begin <= moment < end), moment)

    def next(self, moment: float) -> float:
        """When it can be reached, from this moment on; infinity = never."""
        return next((max(begin, moment) for begin, end in self._near(moment) if moment < end), math.inf)

    def _near(self, moment: float) -> Iterable[tuple[float, float]]:
        """Spans in order, from one that may still be under way."""
        if self.every is None:
            return self.spans
        every, first = self.every, math.floor(moment / self.every) - 1
        days = (first, first + 1, first + 2)
        return ((begin + day * every, end + day * every) for day in days for begin, end in self.spans)


_WINDOW = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*")


def windows(text: str) -> list[tuple[float, float]]:
    """``22-6`` or ``9-12,13.5-17``, hours of the day, as spans of seconds; one that ends before it begins goes over midnight.

    Raises:
        ValueError: it is no such text.
    """
    found = []
    for part in text.split(","):
        match = _WINDOW.fullmatch(part)
        begin, end = map(float, match.groups()) if match else (0.0, 0.0)
        if not (begin < 24 and end <= 24 and begin != end):
            raise ValueError
        found.append((begin * HOUR, (end if end > begin else end + 24) * HOUR))
    return found


@dataclass(frozen=True)
class Trace:
    """A file of who can be reached when.

    Attributes:
        path: of it. named: clients are called by their ids, and not by their positions. spans: by what it calls them.
    """

    path: Path
    named: bool
    spans: Mapping[str, Sequence[tuple[float, float]]]

    def of(self, clients: Sequence[str]) -> dict[str, Hours]:
        """The hours of each of these clients, which are all in the order of their ids: none of one that it does not name.

        Raises:
            UserError: it names another one.
        """
        known = list(clients) if self.named else [str(i) for i in range(len(clients))]
        if strange := [name for name in self.spans if name not in known]:
            what = "client" if self.named else "position"
            raise UserError(
                f'{self.path} has the {what} "{strange[0]}", which is none of this run: it has {count(len(clients), "client")}, '
                f"{known[0]} to {known[-1]}."
            )
        return {c: Hours.of(self.spans.get(name, ())) for c, name in zip(clients, known, strict=True)}


def read_trace(path: Path) -> Trace:
    """A CSV with the columns ``client`` (an id) or ``position`` (from 0), ``start`` and ``end``, in seconds of the clock.

    Raises:
        UserError: it can't be read, or a line of it can't be.
    """
    how = "give it the columns client (or position), start and end, a line for each span of seconds"
    who = "client"
    spans: dict[str, list[tuple[float, float]]] = {}
    for number, row in rows(path, "trace", ("client|position", "start", "end"), how):
        who = "client" if "client" in row else "position"
        try:
            begin, end = float(row["start"]), float(row["end"])
        except (TypeError, ValueError):
            begin = end = math.nan
        if not (0 <= begin < math.inf and math.isfinite(end)):
            raise UserError(f"line {number} of the trace {path} has no start from 0 and end: {how}.")
        if end <= begin:
            raise UserError(f"line {number} of the trace {path} ends at {end:g} s and starts at {begin:g} s: let it end later.")
        spans.setdefault(row[who].strip(), []).append((begin, end))
    return Trace(path, who == "client", spans)
