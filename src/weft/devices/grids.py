"""Carbon intensity of electricity by the hour of the day: two stylised grids, and files of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from weft.devices.availability import DAY, HOUR
from weft.devices.shares import of_text
from weft.devices.small_tables import rows
from weft.errors import UserError, nearest

SHIPPED = ("solar", "coal-wind")
"""Curves that come with Weft. They are stylised, and of no country: see the comments of their files."""
KWH = 3.6e6


@dataclass(frozen=True)
class Grid:
    """One region's.

    Attributes:
        name: of the region. grams: of CO₂ for a kWh, in each of 24 hours.
    """

    name: str
    grams: tuple[float, ...]

    def of(self, joules: float, begin: float, end: float) -> float:
        """Grams of what is drawn evenly between two moments, in seconds since a midnight."""
        if end <= begin:
            return joules / KWH * self.grams[int(begin % DAY // HOUR)]
        days = begin // DAY * DAY
        return joules / KWH * (self._sum(end - days) - self._sum(begin - days)) / (end - begin)

    def _sum(self, moment: float) -> float:
        """Grams per kWh times seconds since midnight."""
        day, second = divmod(moment, DAY)
        hour = int(second // HOUR)
        return HOUR * (day * math.fsum(self.grams) + math.fsum(self.grams[:hour])) + (second - hour * HOUR) * self.grams[hour]


MOST = 1e5
"""Grams of a kWh."""


def read_grids(text: str) -> list[tuple[Grid, float]]:
    """Grids with their shares: ``solar:2,coal-wind`` of :data:`SHIPPED`, or a ``.csv`` file, whose regions share alike.

    Raises:
        UserError: there is no such grid or file, or it has negative numbers, or lacks an hour.
    """
    if text.endswith(".csv"):
        return [(grid, 1.0) for grid in _in_file(Path(text).expanduser())]
    found = []
    for name, share in of_text(text, "grids", "solar:2,coal-wind").items():
        if name not in SHIPPED:
            raise UserError(
                f'there is no grid "{name}": use {", ".join(SHIPPED)}, or a .csv file of yours.{nearest(name, SHIPPED)}'
            )
        with resources.as_file(resources.files(__package__) / f"{name}.csv") as file:
            found.append((_in_file(file)[0], share))
    return found


def _in_file(path: Path) -> Sequence[Grid]:
    how = "give it the columns region, hour (0 to 23) and g_per_kwh, with 24 lines for each region"
    curves: dict[str, dict[int, float]] = {}
    for number, row in rows(path, "carbon file", ("region", "hour", "g_per_kwh"), how):
        try:
            hour, grams = int(row["hour"]), float(row["g_per_kwh"])
        except ValueError:
            hour, grams = -1, math.nan
        region = row["region"].strip()
        if not region or not 0 <= hour < 24 or not math.isfinite(grams):
            raise UserError(f"line {number} of the carbon file {path} has no region, hour and grams: {how}.")
        if not 0 <= grams <= MOST:
            raise UserError(
                f"line {number} of the carbon file {path} has {grams:g} g per kWh: give grams of 0 or more, to {MOST:g}."
            )
        if hour in (curve := curves.setdefault(region, {})):
            raise UserError(f"line {number} of the carbon file {path} has hour {hour} of {region} once more: {how}.")
        curve[hour] = grams
    for region, curve in curves.items():
        if missing := [str(hour) for hour in range(24) if hour not in curve]:
            raise UserError(f"the carbon file {path} lacks the hours {', '.join(missing)} of {region}: {how}.")
    return [Grid(region, tuple(curve[hour] for hour in range(24))) for region, curve in curves.items()]
