"""Colours, dashes and shapes: of a group of runs, each tells it from the others by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.report.page.shown import Shown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
"""Okabe and Ito's, which colour-blind people tell apart; grey instead of black and yellow, which vanish on one of two grounds."""
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2))
SHAPES = (
    "M0,-1A1,1,0,1,1,0,1A1,1,0,1,1,0,-1Z",
    "M-0.9,-0.9H0.9V0.9H-0.9Z",
    "M0,-1.1L1.1,0.9H-1.1Z",
    "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
    "M-0.4,-1.1H0.4V-0.4H1.1V0.4H0.4V1.1H-0.4V0.4H-1.1V-0.4H-0.4Z",
    "M0,1.1L1.1,-0.9H-1.1Z",
    "M-1.1,0L0.9,-1.1V1.1Z",
)
"""SVG paths about the origin, some two units wide: of points in plots and in keys alike."""


@dataclass(frozen=True)
class Style:
    """How a group of runs is drawn."""

    group: str
    colour: str
    dash: tuple[int, ...]
    shape: str


def styles(runs: Sequence[Shown]) -> list[Style]:
    """A style for each group, in the order of the runs; groups of one method have one colour."""
    groups = {one.group: one.method for one in runs}
    methods = list(dict.fromkeys(groups.values()))
    return [
        Style(group, COLOURS[methods.index(method) % len(COLOURS)], DASHES[i % len(DASHES)], SHAPES[i % len(SHAPES)])
        for i, (group, method) in enumerate(groups.items())
    ]
