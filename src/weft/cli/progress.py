"""Watching a run: bars at a terminal, plain lines elsewhere, and the same row for every evaluated round in both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from weft.engines.observer import Observer
from weft.report import terminal

if TYPE_CHECKING:
    from rich.console import Console

WORDS = {"set-up": "Set-up", "rounds": "Rounds", "clients": "Clients", "evaluation": "Evaluation"}


class Lines(Observer):
    """Plain lines: one for each stage at the top level, one for each evaluated round.

    Args:
        out: where to. classes of stages inside a round are not told: a log of a long run stays short.
    """

    def __init__(self, out: Console):
        self.out = out
        self._open: list[str] = []
        self._headed = False

    def say(self, text: str) -> None:
        self.out.print(Text(text))

    def begin(self, stage: str, total: int) -> None:
        self._open.append(stage)
        self._headed = False if len(self._open) == 1 else self._headed

    def end(self, stage: str) -> None:
        if stage in self._open:
            del self._open[self._open.index(stage) :]

    def round_done(self, record: dict[str, Any]) -> None:
        row = terminal.round_row(record)
        if row is None:
            return
        if not self._headed:
            self.out.print(terminal.round_head())
            self._headed = True
        self.out.print(row)


class Remaining(TextColumn):
    """Time left of the outermost counted stage, from the steps it has taken so far."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{_clock(left)} left", style="dim")


class Bars(Lines):
    """Live bars below the rows, gone when the run is over."""

    def __init__(self, out: Console):
        super().__init__(out)
        self.progress = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="cyan", pulse_style="cyan"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("{task.fields[figures]}", style="dim"),
            console=out,
            transient=True,
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        if stage in self._tasks:
            self.progress.remove_task(self._tasks[stage])
        self._tasks[stage] = self.progress.add_task(WORDS.get(stage, stage), total=total or None, figures="")

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        if stage not in self._tasks:
            return
        shown = "  ".join(f"{k} {_figure(v)}" for k, v in figures.items())
        changes = {"figures": shown} if figures else {}
        self.progress.update(self._tasks[stage], advance=by, **changes)

    def end(self, stage: str) -> None:
        super().end(stage)
        if stage in self._tasks:
            self.progress.remove_task(self._tasks.pop(stage))


def observer(out: Console, quiet: bool) -> Observer:
    """What fits the place: nothing, bars or lines."""
    if quiet:
        return Observer()
    return Bars(out) if out.is_terminal and not out.is_dumb_terminal else Lines(out)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return time.strftime("%M:%S" if seconds < 3600 else "%H:%M:%S", time.gmtime(seconds))
