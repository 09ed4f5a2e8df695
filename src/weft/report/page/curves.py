"""The numbers that curves are drawn of, by round: few columns, few digits, and no more rows than a page can carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weft.report.page.shown import Shown
from weft.runs.result import headline

ROWS, FEWEST = 2000, 25
"""Rows of all runs together, and of one run at least: of longer runs, rounds are left out evenly."""
MARKED = 8
"""Points of a curve that have a mark."""
PLAIN = ("loss", "aggregation_error", "drift", "effective_rank", "density", "memory")
"""Keys of a round that have a curve each."""

Row = dict[str, Any]


def curves(runs: Sequence[Shown], metrics: Sequence[str]) -> list[Row]:
    """A row for each run and round that is drawn.

    Args:
        metrics: headlines; ``k`` of a row is the place of its own.

    Returns:
        rows with ``run`` (its place), ``round`` (from 1), ``k``, ``sent`` (MB, all clients, both ways, so far), ``seconds`` (of
        training, so far), ``clock`` and ``joules`` (on simulated devices, so far), ``value`` (of the headline), the keys PLAIN
        (``memory`` in GB), and ``mark`` (1: with a point).
    """
    limit = max(FEWEST, ROWS // len(runs))
    found: list[Row] = []
    for place, one in enumerate(runs):
        rows = _thinned(_rows(one, metrics), limit)
        scored = [row for row in rows if row["value"] is not None] or rows
        step = max(1, math.ceil(len(scored) / MARKED))
        for i, row in enumerate(scored):
            row["mark"] = int(i % step == 0 or i == len(scored) - 1)
        found += [{"run": place} | row for row in rows]
    return found


def _rows(one: Shown, metrics: Sequence[str]) -> list[Row]:
    sent, seconds, joules = _sent_before(one), 0.0, 0.0
    rows: list[Row] = []
    for line in one.rounds:
        sent += _bytes(line.get("bytes", {}))
        seconds += line.get("seconds", {}).get("training", 0.0)
        top = headline(line)
        row: Row = {"round": line["round"] + 1, "k": None, "sent": _digits(sent / 1e6), "seconds": _digits(seconds), "mark": 0}
        clock = line.get("clock") or {}
        joules += clock.get("joules", 0.0)
        row |= {"clock": _digits(clock.get("now")), "joules": _digits(joules) if clock else None}
        row["value"] = None if top is None else _digits(top["value"])
        if top is not None and top["metric"] in metrics:
            row["k"] = metrics.index(top["metric"])
        for name in PLAIN:
            row[name] = _digits(number(line.get(name)))
        if row["memory"] is not None:
            row["memory"] = _digits(row["memory"] / 1e9)
        rows.append(row)
    return rows


def _thinned(rows: list[Row], limit: int) -> list[Row]:
    """At most about ``limit`` rows, evenly, the first and the last among them; those with a score go first."""
    if len(rows) <= limit:
        return rows
    scored = [row for row in rows if row["value"] is not None]
    of = scored if len(scored) > limit // 2 else rows
    kept = {of[round(i * (len(of) - 1) / (limit - 1))]["round"] for i in range(limit)}
    if of is rows:
        kept |= {row["round"] for row in scored}
    return [row for row in rows if row["round"] in kept]


def _sent_before(one: Shown) -> float:
    """Bytes of a head's own training before the first round, which no line of the rounds has."""
    whole = {"setup": one.summary.get("bytes", {}).get("setup", {})}
    return max(0.0, _bytes(whole) - sum(_bytes({"setup": line.get("bytes", {}).get("setup", {})}) for line in one.rounds))


def _bytes(phases: Mapping[str, Any]) -> float:
    """Of training and set-up, both ways; what was sent only to test is not counted."""
    return sum(phases[p][way]["wire"] for p in ("setup", "train") if phases.get(p) for way in ("down", "up"))


def number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _digits(value: float | None) -> float | None:
    finite = number(value)
    return None if finite is None else float(f"{finite:.4g}")


def columnar(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as a list of names and lists of values, without columns that no row has a value in;."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if any(row.get(n) is not None for row in rows)]
    return {"columns": names, "rows": [[row.get(n) for n in names] for row in rows]}
