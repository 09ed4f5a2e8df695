"""A setting of each method chosen on validation rows, with as many tries for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft.comparison.cell_grid import Grid
from weft.comparison.cells import Done
from weft.comparison.records import record
from weft.tasks.task import goodness
from weft.words import shown


@dataclass(frozen=True)
class Choice:
    """What was chosen for a method at one place of the grid.

    Attributes:
        value: None = nothing, for the reason in ``note``. note: what a reader has to know: the value lies at an edge, or why
            there is none.
    """

    row: str
    at: Mapping[str, Any]
    name: str
    value: Any
    note: str


def search(grid: Grid, row: str, at: Mapping[str, Any], play: Callable[..., list[Done]]) -> Choice | None:
    """Try every value on the grid's first seed; of equal ones the first is taken. None if the row is not searched.

    Test rows have no say in it.
    """
    if grid.tune is None or row in ("probe", "zero-shot"):
        return None
    name, values = grid.tune
    tried = [record(d) for d in play([grid.cell(row, at, grid.seeds[0], (name, value)) for value in values])]
    scores = [(goodness(r["metric"] or "", r["validation"]), value) for r, value in zip(tried, values, strict=True)]
    best, value = max(scores, key=lambda pair: pair[0])
    if best == float("-inf"):
        reasons = [r["reason"] for r in tried if r["reason"]]
        why = reasons[0] if reasons else "it has no score on validation rows: give --val-fraction"
        return Choice(row, at, name, None, f"{row} is not tuned: {why.rstrip('.')}.")
    edge = {min(values): "smallest", max(values): "largest"}.get(value) if _ordered(values) else None
    clipped = f", the {edge} tried: try {'smaller' if edge == 'smallest' else 'larger'} ones" if edge else ""
    return Choice(row, at, name, value, f"{row}, tuned: {name} = {shown(value)}{clipped}.")


def _ordered(values: tuple[Any, ...]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
