"""Watching a run: bars at a terminal, plain lines elsewhere, and the same row for every evaluated round in both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from weft.engines.observer import Observer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.progress import Progress, TaskID


def starting(out: Console, quiet: bool) -> AbstractContextManager[Any]:
    """A sign of life while the heavy imports run."""
    return nullcontext() if quiet or not out.is_terminal else out.status("Starting")


@contextmanager
def watching(out: Console, quiet: bool) -> Iterator[Observer]:
    """An observer that fits the place: silent, bars or lines."""
    if quiet:
        yield Observer()
    elif out.is_terminal and not out.is_dumb_terminal:
        with _bars(out) as progress:
            yield Bars(out, progress)
    else:
        yield Lines(out)


class Lines(Observer):
    """Plain lines: one for each stage outside the rounds, one for each evaluated round."""

    def __init__(self, out: Console):
        self.out = out
        self._headed = False

    def say(self, text: str) -> None:
        from rich.text import Text

        self.out.print(Text(text, style="dim"), soft_wrap=not self.out.is_terminal)  # a line of a log stays whole

    def begin(self, stage: str, total: int) -> None:
        if stage not in ("rounds", "clients"):
            self.out.print(f"{_title(stage)} …", markup=False)

    def round_done(self, record: dict[str, Any]) -> None:
        from weft.report import terminal

        row = terminal.round_row(record)
        if row is None:
            return
        if not self._headed:
            self.out.print()
            self.out.print(terminal.round_head(record))
            self._headed = True
        self.out.print(row)


class Bars(Lines):
    """Live bars below the rows, gone when the run is over."""

    def __init__(self, out: Console, progress: Progress):
        super().__init__(out)
        self.progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._steps = 0

    def begin(self, stage: str, total: int) -> None:
        self.end(stage)
        self._steps = 0
        self._tasks[stage] = self.progress.add_task(_title(stage), total=total or None, figures="")

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        if stage == "steps":  # of whoever trains now
            self._steps += by
            stage, by, figures = "clients", 0, {"step": self._steps}
        if stage in self._tasks:
            shown = "  ".join(f"{v} ✓" if isinstance(v, str) else f"{k} {v}" for k, v in figures.items())
            self.progress.update(self._tasks[stage], advance=by, figures=shown)

    def end(self, stage: str) -> None:
        if stage in self._tasks:
            self.progress.remove_task(self._tasks.pop(stage))


def _title(stage: str) -> str:
    return stage.capitalize().replace("Baseline ", "Baseline: ")


def _bars(out: Console) -> Progress:
    from rich import progress

    return progress.Progress(
        progress.SpinnerColumn(style="cyan"),
        progress.TextColumn("{task.description:<16}"),
        progress.BarColumn(bar_width=20, complete_style="cyan", finished_style="cyan", pulse_style="cyan"),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[figures]}", style="dim"),
        console=out,
        transient=True,
        refresh_per_second=8,
    )
