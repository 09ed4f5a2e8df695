"""``weft watch``: follow a run from another process, by its folder alone, at the terminal and in a browser."""

from __future__ import annotations

import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting

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
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve its page too, to browsers on this machine; the page renews itself.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page.", show_default="one that is free")] = 0,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Follow a run while it goes on, from another terminal: rounds, time left, headline, loss, bytes.

    It ends when the run does, or with Ctrl-C, which the run does not notice. With
    [bold]--serve[/bold] it ends with Ctrl-C alone.

    [bold]Examples[/bold]

      weft watch runs/fedit-pydocs-minilm-s0
      weft watch runs/fedit-pydocs-minilm-s0 --once
      weft watch runs/fedit-pydocs-minilm-s0 --serve --open
    """
    from weft.report.watched import frame

    if once and serve:
        raise UserError("--once leaves at once and --serve stays: leave one of them out.")
    if (port or browse) and not serve:
        raise UserError(f"{'--port' if port else '--open'} is about the page that --serve serves: add --serve.")
    screen, path = out(), folder.expanduser()
    _check(path)
    if once:
        screen.print(frame(_look(path), time.time(), screen.options.ascii_only))
    elif serve:
        _serve(screen, path, port, browse)
    else:
        _show(screen, lambda: _look(path))


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


def _serve(screen: Console, folder: Path, port: int, browse: bool) -> None:
    """Serve the page and show the run, until Ctrl-C.

    Raises:
        UserError: the port can't be had.
    """
    from rich.text import Text

    with starting(screen, quiet=False):
        from weft.report.page.followed import Followed
        from weft.report.page.local_server import LocalServer

    followed = Followed(folder)
    with LocalServer(followed, port) as server:
        address = (server.url, f"link {server.url}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            screen.print(Text.assemble("Served at ", address, " until Ctrl-C, which the run does not notice."), soft_wrap=True)
            if browse and not webbrowser.open(server.url):
                screen.print("No browser was found: open that address in one.")
            _show(screen, followed.look)
            screen.print(Text.assemble("The run is finished. Its page stays at ", address, " until Ctrl-C."), soft_wrap=True)
            while True:
                time.sleep(POLL)
        except KeyboardInterrupt:
            screen.print("\nThe page is no longer served.")
        finally:
            server.shutdown()


def _show(screen: Console, look: Callable[[], Glance]) -> None:
    """Until the run is finished."""
    if screen.is_terminal and not screen.is_dumb_terminal:
        _live(screen, look)
    else:
        _lines(screen, look)


def _looks(look: Callable[[], Glance]) -> Iterator[Glance]:
    """Until the run is finished."""
    while True:
        now = look()
        yield now
        if now.finished:
            return
        time.sleep(POLL)


def _live(screen: Console, look: Callable[[], Glance]) -> None:
    from rich.live import Live

    from weft.report.watched import frame

    with Live(console=screen, auto_refresh=False) as live:
        for now in _looks(look):
            live.update(frame(now, time.time(), screen.options.ascii_only), refresh=True)


def _lines(screen: Console, look: Callable[[], Glance]) -> None:
    """Where nothing can be drawn over: a row for each round that is scored, and the frame at the end."""
    from weft.report.progress import Lines
    from weft.report.watched import frame

    rows, told = Lines(screen), 0
    for now in _looks(look):
        for line in now.rounds[told:]:
            rows.round_done(line)
        told = max(told, len(now.rounds))  # a folder that is moved shows fewer for a moment
    screen.print()
    screen.print(frame(now, time.time(), screen.options.ascii_only))
