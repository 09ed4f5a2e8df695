"""The tables of a comparison: a row for each method, one table for each place of the grid, and the paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft import energy
from weft.comparison import statistics
from weft.comparison.cell_grid import Grid
from weft.comparison.records import CLOCK, ENERGY
from weft.comparison.statistics import Difference
from weft.report.table import Table
from weft.tasks.task import LESS_IS_BETTER
from weft.words import shown

Record = Mapping[str, Any]
HEADS = {"common": "all test rows", "own": "own test rows", "worst": "worst client"}
"""Score -> its column."""
COSTS = ("seeds", "up, kB", "down, kB", "steps", "examples", "training, s", "aggregation error", "drift", "memory, MB")
ON_DEVICES = {"seconds": "on devices, s", "joules": "on devices, J", "grams": "on devices, g CO₂"}
"""Total of :func:`weft.devices.total` -> its column, where there is one."""
UNIT = frozenset({"top5", "precision", "recall", "exact_match"})
"""Metrics that are shares, and are shown in per cent; so is every accuracy and F1."""
NONE_SEEN = "no difference seen"


def of_places(grid: Grid, records: Sequence[Record]) -> list[Table]:
    """A table for each place of the dimensions, with a row for each method and tuning."""
    records = _of_one_metric(records)
    return [_of_place(grid, at, [r for r in records if all(r[n] == v for n, v in at.items())]) for at in grid.places()]


def of_differences(grid: Grid, records: Sequence[Record]) -> Table | None:
    """Each method less the first, in pairs of the same seed and place; None if there is but one row."""
    records, rows, first = _of_one_metric(records), _rows(records), grid.methods[0]
    reference = next((r for r in rows if r[0] == first), None)
    if reference is None or len(rows) < 2:
        return None
    lines = []
    for row in rows:
        if row == reference:
            continue
        cells = [_named(row)]
        for score in ("common", "own"):
            gap = _difference(records, reference, row, score, grid)
            cells += ["", "", ""] if gap is None else [_told(gap, _scale(records)), str(gap.n), _verdict(gap, records)]
        lines.append(tuple(cells))
    heads = [f"{HEADS[s]}{more}" for s in ("common", "own") for more in (_unit(records), ", pairs", ", verdict")]
    note = f"Less {_named(reference)}, in pairs of the same seed and place of the grid: the mean, and Student's 95 % interval."
    return Table("Paired differences", ("method", *heads), tuple(lines), notes=(note,))


def without_effect(grid: Grid, records: Sequence[Record]) -> list[str]:
    """Names of dimensions of which no value gives other numbers than another."""
    found = []
    for name, values in grid.dimensions.items():
        groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for r in (r for r in records if r["finished"]):
            others = tuple(r[n] for n in ("method", "tuned", "seed", *grid.dimensions) if n != name)
            groups.setdefault(others, []).append(tuple(r[n] for n in (*HEADS, "bytes_up", "bytes_down", "examples")))
        compared = [numbers for numbers in groups.values() if len(numbers) > 1]
        if len(values) > 1 and compared and all(len(set(numbers)) == 1 for numbers in compared):
            found.append(name)
    return found


def _of_one_metric(records: Sequence[Record]) -> list[Record]:
    """Without the scores of cells whose headline is another than the first one's, and with the reason in their place."""
    metric, found = _metric(records), list[Record]()
    for r in records:
        if r["finished"] and r["metric"] != metric:
            why = f"its headline is {r['metric'] or 'missing'}, and not {metric}"
            found.append({**r, **dict.fromkeys(HEADS), "finished": False, "reason": why})
        else:
            found.append(r)
    return found


def _of_place(grid: Grid, at: Mapping[str, Any], records: Sequence[Record]) -> Table:
    rows = _rows(records)
    unit, scale = _unit(records), _scale(records)
    usual = _work(_of(records, rows[0])) if rows else None
    drawn = {row: [told for r in _of(records, row) if r["finished"] and (told := _drawn(r))] for row in rows}
    tells, timed = (
        any(drawn.values()),
        {n: head for n, head in ON_DEVICES.items() if any(r.get(f"{CLOCK}{n}") is not None for r in records)},
    )
    lines, bold, notes = [], set(), []
    for row in rows:
        mine = [r for r in _of(records, row) if r["finished"]]
        failed = [r for r in _of(records, row) if not r["finished"]]
        notes += [f"{_named(row)}: {r['reason']}" for r in failed]
        work = _work(mine)
        other = "*" if work is not None and usual is not None and work != usual else ""
        lines.append(
            (
                _named(row),
                *(_spread([r[s] for r in mine], scale) for s in HEADS),
                str(len(mine)),
                *(_mean([r[w] for r in mine], 1e3) for w in ("bytes_up", "bytes_down")),
                *(f"{_mean([r[w] for r in mine])}{other}" for w in ("steps", "examples")),
                _mean([r["seconds"] for r in mine], digits=1),
                *(_mean([r[name] for r in mine], form=".2g") for name in ("aggregation_error", "drift")),
                _mean([r["memory"] for r in mine], 1e6, form=",.0f"),
                *(_energy_cells(drawn[row], len(mine)) if tells else ()),
                *(_mean([r.get(f"{CLOCK}{n}") for r in mine], form=".3g") for n in timed),
            )
        )
    for column, score in enumerate(HEADS, 1):
        if (best := _best(grid, records, rows, score)) is not None:
            bold.add((rows.index(best), column))
    notes.append("Bytes are of a client and round, with headers; steps and examples of all clients together.")
    if any("*" in cell for line in lines for cell in line):
        notes.append("* Other work than the first row's, by the nature of the method.")
    if any(str(r.get("commit") or "").endswith("-dirty") for r in records):
        notes.append("Some of it was made with code that was not committed.")
    more = (
        *(_energy_heads(drawn.values()) if tells else ()),
        *timed.values(),
    )
    heads = ("method", *(f"{HEADS[s]}{unit}" for s in HEADS), *COSTS, *more)
    title = ", ".join(f"{name} {shown(value)}" for name, value in at.items()) or "All methods"
    return Table(title, heads, tuple(lines), frozenset(bold), tuple(dict.fromkeys(notes)))


def _drawn(r: Record) -> dict[str, Any]:
    """Its energy, as :func:`weft.energy.total` has it; empty if it tells none."""
    return {name.removeprefix(ENERGY): value for name, value in r.items() if name.startswith(ENERGY)}


def _energy_heads(drawn: Iterable[Sequence[Record]]) -> tuple[str, ...]:
    """Columns that say whose word they are: a terminal may have no room for the last one, and CSV has no notes."""
    by = energy.kind([one for told in drawn for one in told])
    return (f"energy, Wh ({by})", f"CO₂, g ({by})", "energy is")


def _energy_cells(told: Sequence[Record], seeds: int) -> tuple[str, ...]:
    """In the mean over the seeds that tell it."""
    if not told:
        return ("", "", "")
    some = f", of {len(told)} of {seeds} seeds" if len(told) < seeds else ""
    return (*(_mean([one[n] and 1e3 * one[n] for one in told], form=".3g") for n in ("kwh", "co2_kg")), energy.how(told) + some)


Row = tuple[str, str | None]


def _rows(records: Iterable[Record]) -> list[Row]:
    """Methods, each as it is and tuned, in the order in which they come."""
    return list(dict.fromkeys((r["method"], None if r["tuned"] is None else "tuned") for r in records))


def _of(records: Iterable[Record], row: Row) -> list[Record]:
    return [r for r in records if (r["method"], None if r["tuned"] is None else "tuned") == row]


def _named(row: Row) -> str:
    return row[0] if row[1] is None else f"{row[0]}, tuned"


def _difference(records: Sequence[Record], first: Row, second: Row, score: str, grid: Grid) -> Difference | None:
    """Of the second row to the first, over all pairs that have both."""
    keys = ("seed", *grid.dimensions)
    mine, other = (
        {tuple(r[k] for k in keys): r[score] for r in _of(records, row) if _number(r[score])} for row in (first, second)
    )
    both = [k for k in mine if k in other]
    return statistics.difference([mine[k] for k in both], [other[k] for k in both]) if both else None


def _best(grid: Grid, records: Sequence[Record], rows: Sequence[Row], score: str) -> Row | None:
    """The row with the best mean, if it is seen to be better than every other one."""
    sign = -1.0 if _metric(records) in LESS_IS_BETTER else 1.0
    means = {row: statistics.spread(v).mean for row in rows if (v := [r[score] for r in _of(records, row) if _number(r[score])])}
    if len(means) < 2:
        return None
    best = max(means, key=lambda row: sign * means[row])
    for row in means:
        gap = None if row == best else _difference(records, row, best, score, grid)
        if row != best and (gap is None or not sign * (gap.low if sign > 0 else gap.high) > 0):
            return None
    return best


def _verdict(gap: Difference, records: Sequence[Record]) -> str:
    if gap.n < 2:
        return "one pair tells nothing"
    if not gap.seen:
        return NONE_SEEN
    return "better" if (gap.mean > 0) != (_metric(records) in LESS_IS_BETTER) else "worse"


def _work(records: Sequence[Record]) -> tuple[Any, Any] | None:
    """Steps and examples in the mean over seeds, if they were counted."""
    found = [(r["steps"], r["examples"]) for r in records if r.get("steps") is not None]
    return (sum(s for s, _ in found) / len(found), sum(e for _, e in found) / len(found)) if found else None


def _metric(records: Sequence[Record]) -> str:
    return next((r["metric"] for r in records if r.get("metric")), "")


def _unit(records: Sequence[Record]) -> str:
    return ", %" if _scale(records) == 100 else ""


def _scale(records: Sequence[Record]) -> float:
    metric = _metric(records)
    return 100.0 if metric in UNIT or "accuracy" in metric or "f1" in metric else 1.0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spread(values: Sequence[Any], scale: float) -> str:
    numbers = [scale * v for v in values if _number(v)]
    if not numbers:
        return ""
    found, digits = statistics.spread(numbers), 1 if scale == 100 else 3
    return f"{found.mean:.{digits}f}" + (f" ± {found.deviation:.{digits}f}" if found.n > 1 else "")


def _told(gap: Difference, scale: float) -> str:
    digits = 1 if scale == 100 else 3
    mean = f"{scale * gap.mean:+.{digits}f}"
    return mean if gap.n < 2 else f"{mean} [{scale * gap.low:+.{digits}f}, {scale * gap.high:+.{digits}f}]"


def _mean(values: Sequence[Any], over: float = 1.0, digits: int = 0, form: str = "") -> str:
    numbers = [v / over for v in values if _number(v)]
    if not numbers:
        return ""
    mean = sum(numbers) / len(numbers)
    return f"{mean:{form}}" if form else f"{mean:,.{1 if over > 1 else digits}f}"
