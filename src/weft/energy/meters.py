"""What tells how much was drawn for a time: counters, or a person's word."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weft.energy.counters import Counter, Unreadable, source

KWH = 3.6e6
"""Joules in a kWh."""
IDLE = 5.0
"""Seconds for which the draw of an idle machine is measured."""
EVERY = 60.0
"""Seconds between two readings of a counter, which may wrap around once in between: RAPL does after 10 minutes at 400 W."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn in a time, in kWh, idle or not."""

    kwh: float
    seconds: float


class Meter(Protocol):
    """
    Attributes:
        source: ``measured: RAPL``, ``declared: 65 W``. idle: watts that are no run's, known after :meth:`begin`.
    """

    source: str
    idle: float

    def begin(self) -> None:
        """From here on it counts."""
        ...

    def drawn(self, seconds: float) -> Drawn | None:
        """Since it began, or since it was asked last; None if a counter failed.

        Args:
            seconds: by the clock of whoever was at work.
        """
        ...

    def close(self) -> None:
        """Nothing will be asked any more."""
        ...


class Declared:
    """Watts under load, times seconds.

    Args:
        idle: of these. jobs: runs beside each other that share them, and their idle draw, in equal parts.
    """

    def __init__(self, watts: float, idle: float = 0.0, jobs: int = 1):
        self.source = f"declared: {watts:g} W" + (f" shared by {jobs} jobs" if jobs > 1 else "")
        self.watts, self.idle = watts / jobs, idle / jobs

    def begin(self) -> None:
        pass

    def drawn(self, seconds: float) -> Drawn:
        return Drawn(self.watts * seconds / KWH, seconds)

    def close(self) -> None:
        pass


class Measured:
    """The sum of all counters, on a clock of its own.

    Args:
        idle: watts; None: they are measured before it begins for the first time.
    """

    def __init__(self, counters: Sequence[Counter], idle: float | None = None):
        self.source = source(list(counters))
        self.idle = 0.0 if idle is None else idle
        self._counters, self._rested = counters, idle is not None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._kwh, self._failed, self._began = 0.0, False, 0.0

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="energy", daemon=True)
            self._thread.start()
        if not self._rested:
            self._rest()
        self._take()

    def drawn(self, seconds: float) -> Drawn | None:
        return self._take()

    def close(self) -> None:
        self._over.set()

    def _rest(self) -> None:
        """A counter that fails just then leaves it to the next time."""
        self._take()
        time.sleep(IDLE)
        if (rest := self._take()) is not None:
            self.idle, self._rested = rest.kwh * KWH / rest.seconds, True

    def _take(self) -> Drawn | None:
        """What has come together since the last time."""
        with self._lock:
            self._read()
            now = time.perf_counter()
            found = None if self._failed else Drawn(self._kwh, now - self._began)
            self._kwh, self._failed, self._began = 0.0, False, now
        return found

    def _read(self) -> None:
        """Every counter, also after one that fails, so that all have the same time behind them."""
        for counter in self._counters:
            try:
                self._kwh += counter.kwh()
            except Unreadable:
                self._failed = True

    def _follow(self) -> None:
        while not self._over.wait(EVERY):
            with self._lock:
                self._read()
