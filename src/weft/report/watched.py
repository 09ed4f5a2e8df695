"""A run as it stands, in one frame of a terminal: how far it came, how long it will take, and how its numbers move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weft.communication.ledger import format_bytes
from weft.report.console import visible
from weft.runs.result import headline
from weft.tasks.task import goodness
from weft.words import count

if TYPE_CHECKING:
    from weft.runs.glance import Glance

BARS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"
"""Heights of a sparkline, and for a terminal that knows ASCII alone."""
WIDTH = 40
LATEST = 5
"""Rounds from which the length of the next is told."""
OVERDUE = 5
"""Times the usual length of a round after which it is said that none has come."""


def frame(now: Glance, clock: float, ascii: bool = False) -> RenderableType:
    """The frame.

    Args:
        clock: seconds since the epoch. ascii: the terminal knows no other characters.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, cell in _rows(now, clock, ascii):
        table.add_row(name, cell)
    return Group(_title(now), table)


def _title(now: Glance) -> Text:
    words = [] if not now.summary else [now.summary["method"]["slug"], now.setting("baseline"), now.setting("model")]
    more = " · ".join(visible(str(w)) for w in [*words, now.summary.get("data", {}).get("name")] if w)
    return Text.assemble((visible(str(now.folder)), "bold"), f"  {more}" if more else "")


def _rows(now: Glance, clock: float, ascii: bool) -> list[tuple[str, RenderableType]]:
    done, planned = len(now.rounds), now.planned
    found: list[tuple[str, RenderableType]] = [("state", Text(_state(now, clock)))]
    if not now.summary:
        return found
    bar = ProgressBar(total=max(planned or done, 1), completed=done, width=WIDTH // 2, complete_style="cyan")
    cells = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    cells.add_row(Text(f"{done} of {planned}"), "" if ascii else bar)
    found.append(("rounds", cells))
    if not now.finished and (seconds := seconds_left(now)) is not None:
        found.append(("time left", Text(f"about {duration(seconds)}")))
    tops = [top for line in now.rounds if (top := headline(line)) is not None and top["value"] is not None]
    if tops:
        top, values = tops[-1], [t["value"] for t in tops if t["metric"] == tops[-1]["metric"]]
        best = max(values, key=lambda v: goodness(top["metric"], v))
        found.append((top["metric"].replace("_", " "), Text(_line(values, f"{top['value']:.4g}, best {best:.4g}", ascii))))
    if losses := [line["loss"] for line in now.rounds if line.get("loss") is not None]:
        found.append(("loss", Text(_line(losses, f"{losses[-1]:.4g}", ascii))))
    for way in ("up", "down"):
        if (total := now.bytes(way)) is not None:
            each = f", {format_bytes(total / done)} a round" if done else ""
            found.append((f"bytes {way}", Text(format_bytes(total) + each)))
    return found


def _state(now: Glance, clock: float) -> str:
    if not now.summary:
        return "nothing has been written yet"
    if now.finished:
        why = (now.summary.get("stopped") or {}).get("why")
        return f"finished: {visible(why)}" if why else "finished"
    if now.saved is None:
        return f"set-up, {count(now.setup, 'round')} of the head's own training" if now.setup else "set-up"
    age, usual = max(clock - now.saved, 0.0), _usual(now) or 0.0
    since = f"the last round was saved {duration(age)} ago"
    if now.planned is not None and len(now.rounds) >= now.planned:
        return f"all rounds are played, the rest is being done; {since}"
    if age > OVERDUE * usual + 60:
        return f"{since}, and one takes {duration(usual)}: weft runs says whether anybody is at it"
    return since


def _usual(now: Glance) -> float | None:
    """Seconds that the latest rounds took on average, with their evaluations."""
    latest = [sum(line.get("seconds", {}).values()) for line in now.rounds[-LATEST:]]
    return sum(latest) / len(latest) if latest else None


def seconds_left(now: Glance) -> float | None:
    """What the rounds that are left will take, if they are as the latest were; None if nobody can know."""
    usual = _usual(now)
    return None if usual is None or now.planned is None else max(now.planned - len(now.rounds), 0) * usual


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _line(values: Sequence[float], words: str, ascii: bool) -> str:
    return f"{sparkline(values, PLAIN if ascii else BARS)}  {words}"


def sparkline(values: Sequence[float], heights: str = BARS, width: int = WIDTH) -> str:
    """The last ``width`` values between their least and their greatest, a character each."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    step = (high - low) or 1.0
    return "".join(heights[min(int((v - low) / step * len(heights)), len(heights) - 1)] for v in shown)
