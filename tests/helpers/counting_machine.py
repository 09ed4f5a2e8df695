"""A machine with counters of energy: the files of RAPL and a clock, both of which move only when a test says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weft.energy import counters, meters
from weft.engines.here import Here

RANGE = 262_143_328_850
"""Microjoules at which a counter begins again, as that of a usual processor."""


class Machine:
    """Its processor has two packages; the first has cores, which are counted in it already, and memory beside it.

    Args:
        root: for the files. rest: watts that it draws idle.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, rest: float = 3.0):
        self.now, self.rest = 1000.0, rest
        self.tree = root / "powercap"
        self._domain("intel-rapl:0", "package-0", 5_000_000)
        self._domain("intel-rapl:0/intel-rapl:0:0", "core", 1_000_000)
        self._domain("intel-rapl:0/intel-rapl:0:1", "dram", 2_000_000)
        self._domain("intel-rapl:1", "package-1", 900_000_000)
        patch.setattr(counters, "RAPL", str(self.tree))
        patch.setattr(meters, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, self.rest * seconds)

    def spend(self, seconds: float, joules: float) -> None:
        """Time goes by, and both packages draw half of it each."""
        self.now += seconds
        for package in ("intel-rapl:0", "intel-rapl:1"):
            self.add(package, joules / 2)
        self.add("intel-rapl:0/intel-rapl:0:0", joules / 4)
        self.add("intel-rapl:0/intel-rapl:0:1", joules / 8)

    def add(self, domain: str, joules: float) -> None:
        """To one counter, which may begin again."""
        file = self.file(domain)
        file.write_text(f"{(int(file.read_text()) + round(joules * 1e6)) % RANGE}\n")

    def file(self, domain: str) -> Path:
        return self.tree / "intel-rapl" / domain / "energy_uj"

    def works(self, patch: pytest.MonkeyPatch, training: tuple[float, float], scoring: tuple[float, float] = (1.0, 3.0)) -> None:
        """Every round, and every scoring, takes so many (seconds, joules)."""
        play, evaluate = Here.play, Here.evaluate

        def played(turns: Here, *more: Any) -> Any:
            self.spend(*training)
            return play(turns, *more)

        def scored(turns: Here, t: int) -> Any:
            self.spend(*scoring)
            return evaluate(turns, t)

        patch.setattr(Here, "play", played)
        patch.setattr(Here, "evaluate", scored)

    def _domain(self, path: str, name: str, start: int) -> None:
        folder = self.tree / "intel-rapl" / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (folder / "energy_uj").write_text(f"{start}\n")
