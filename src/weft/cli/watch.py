"""``weft watch``: follow a run from another process, by its folder alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.errors import UserError
from weft.report.console import out

if TYPE_CHECKING:
    from rich.console import Console

    from weft.runs.glance import Glance

POLL = 1.0
"""Seconds between two looks."""
TRIES = 5
"""Looks in a row that may fail, while a folder is renamed or copied under us."""


def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/fedit-pydocs-minilm-s0.")],
    once: Annotated[bool, typer.Option("--once", help="Print how it stands now, and leave.")] = False,
) -> None:
    """Follow a run while it goes on, from another terminal: rounds, time left, headline, loss, bytes.

    It ends when the run does, or with Ctrl-C, which the run does not notice.

    [bold]Examples[/bold]

      weft watch runs/fedit-pydocs-minilm-s0
      weft watch runs/fedit-pydocs-minilm-s0 --once
    """
    from weft.report.watched import frame

    screen, path = out(), folder.expanduser()
    _check(path)
    if once:
        screen.print(frame(_look(path), time.time(), screen.options.ascii_only))
        return
    if screen.is_terminal and not screen.is_dumb_terminal:
        _live(screen, path)
    else:
        _lines(screen, path)


def _check(folder: Path) -> None:
    """
    Raises:
        UserError: nothing of a run is there, or will be.
    """
    from weft.runs.listing import is_run
    from weft.storage.files import TEMPORARY

    if not folder.is_dir():
        raise UserError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: give the folder of a run.")
    if not is_run(folder) and any(p.suffix != TEMPORARY for p in folder.iterdir()):
        raise UserError(f"{folder} holds no run: give the folder of one; weft runs {folder} lists those below it.")


def _look(folder: Path) -> Glance:
    """The run as it stands.

    Raises:
        UserError: it can't be read, for longer than a folder is moved about.
    """
    from weft.runs.glance import glance

    for _ in range(TRIES - 1):
        try:
            return glance(folder)
        except UserError:
            time.sleep(POLL / TRIES)
    return glance(folder)


def _looks(folder: Path) -> Iterator[Glance]:
    """Until the run is finished."""
    while True:
        now = _look(folder)
        yield now
        if now.finished:
            return
        time.sleep(POLL)


def _live(screen: Console, folder: Path) -> None:
    from rich.live import Live

    from weft.report.watched import frame

    with Live(console=screen, auto_refresh=False) as live:
        for now in _looks(folder):
            live.update(frame(now, time.time(), screen.options.ascii_only), refresh=True)


def _lines(screen: Console, folder: Path) -> None:
    """Where nothing can be drawn over: a row for each round that is scored, and the frame at the end."""
    from weft.report.progress import Lines
    from weft.report.watched import frame

    rows, told = Lines(screen), 0
    for now in _looks(folder):
        for line in now.rounds[told:]:
            rows.round_done(line)
        told = max(told, len(now.rounds))  # a folder that is moved shows fewer for a moment
    screen.print()
    screen.print(frame(now, time.time(), screen.options.ascii_only))
