"""The cells of a comparison on disk: played, found finished, gone on with, or failed with a reason."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft import start
from weft.comparison import cell_identity as identity
from weft.comparison.cell_grid import Cell, Grid
from weft.engines.observer import Observer
from weft.errors import Interrupted, UserError
from weft.experiment import Resolved, resolve
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory, plain
from weft.runs.shelf import Shelf
from weft.storage import files


@dataclass(frozen=True)
class Planned:
    """A cell that can be played, or why it can't.

    Attributes:
        place: its folder. resolved: None if its settings are refused, for which ``reason`` is.
    """

    cell: Cell
    place: Path
    resolved: Resolved | None
    reason: str = ""


@dataclass(frozen=True)
class Done:
    """A cell, and what came of it.

    Attributes:
        summary: of its run; None if there is none, and ``reason`` says why. found: it was there already.
    """

    cell: Cell
    place: Path
    summary: dict[str, Any] | None
    reason: str = ""
    found: bool = False


def planned(cell: Cell, folder: Path, given: str | None) -> Planned:
    """
    Args:
        folder: of all cells. given: see :func:`weft.comparison.cell_identity.of_cell`.
    """
    try:
        resolved = resolve(dict(cell.settings) | {"runs": str(folder)})
        mark = identity.of_cell(resolved, given)
    except UserError as e:
        return Planned(cell, folder / plain(cell.label), None, str(e))
    called = cell.settings.get("baseline", cell.settings["method"])
    return Planned(cell, folder / f"{called}-s{cell.seed}-{mark[:12]}", resolved)  # the same cell of another grid is found


def check(grid: Grid, plans: Sequence[Planned]) -> None:
    """Refuse a grid with settings that no method can have, before anything is played.

    Raises:
        UserError: so it is.
    """
    grid.lacking()
    for at in grid.places():
        here = [p for p in plans if p.cell.at == at]
        if all(p.resolved is None for p in here):
            raise UserError(here[0].reason)


def finished(place: Path) -> dict[str, Any] | None:
    """The summary of a run that is over; None if there is none, or one that can't be read."""
    try:
        summary = directories.read_summary(RunDirectory(place))
    except UserError:
        return None
    return summary if summary["finished"] else None


def play(plan: Planned, shelf: Shelf, data: Any = None, observer: Observer | None = None, jobs: int = 1) -> Done:
    """Play a cell, unless it is finished; one that was stopped goes on.

    Args:
        jobs: processes that play cells beside each other.

    Raises:
        Interrupted: Ctrl-C; what was finished is saved.
    """
    if plan.resolved is None:
        return Done(plan.cell, plan.place, None, plan.reason)
    if (summary := finished(plan.place)) is not None:
        return Done(plan.cell, plan.place, summary, found=True)
    if plan.place.is_dir() and directories.in_use(RunDirectory(plan.place)):
        return Done(plan.cell, plan.place, None, f"another process is working on {plan.place}.")
    try:
        if not resumed(plan.place, data, observer, jobs):
            shutil.rmtree(plan.place, ignore_errors=True)
            x = plan.resolved.experiment.model_copy(update={"name": plan.place.name})
            start.start(replace(plan.resolved, experiment=x), data, observer, shelf=shelf, jobs=jobs)
    except (Interrupted, KeyboardInterrupt):
        raise
    except UserError as e:
        return Done(plan.cell, plan.place, None, str(e))
    except Exception as e:  # a broken cell is no reason to leave the others
        _keep(plan.place, traceback.format_exc())
        return Done(plan.cell, plan.place, None, f"{type(e).__name__}: {e} (a bug; traceback.txt in {plan.place} says where)")
    return Done(plan.cell, plan.place, directories.read_summary(RunDirectory(plan.place)))


def resumed(place: Path, data: Any, observer: Observer | None, jobs: int = 1) -> bool:
    """Whether a run lay there that has gone on to its end."""
    if not RunDirectory(place).experiment.is_file():
        return False
    try:
        start.resume(place, data=data, observer=observer, jobs=jobs)
    except Interrupted:
        raise
    except UserError:  # what is damaged is played anew
        return False
    return True


def _keep(place: Path, text: str) -> None:
    files.make_folder(place)
    files.write(place / "traceback.txt", text.encode())
