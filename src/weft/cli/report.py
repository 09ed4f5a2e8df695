"""``weft report``: a page of runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting, watching
from weft.words import count


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...|COMPARISON",
            help="Folders of runs, folders that hold some, or that of a comparison.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="The page.", show_default="report.html, in the folder or, of several runs, in the present one"),
    ] = None,
    title: Annotated[str, typer.Option(help="Its title.", show_default="methods and data")] = "",
) -> None:
    """Write one page of one or several runs: tables, curves, and what each was made with. It opens without a network.

    Runs that differ in nothing but the seed are one line with its spread.

    [bold]Examples[/bold]

      weft report runs/fedit-pydocs-minilm-s0
      weft report runs --to comparison.html --title "Four methods on pydocs"
      weft report runs/compare-fedit-flora
    """
    from rich.text import Text

    from weft.comparison import compared_page

    screen = out()
    if len(folders) == 1 and compared_page.is_comparison(place := folders[0].expanduser()):
        if title:
            raise UserError("a comparison has a title of its own: leave --title out.")
        with starting(screen, quiet=False):
            path = compared_page.write(place, to.expanduser() if to is not None else None)
        screen.print(Text(f"{path}: the page of a comparison."), soft_wrap=True)
        return
    found = run_folders(folders)
    with starting(screen, quiet=False):
        from weft.playing.run import load_run
        from weft.report import page
    path = (to or (found[0] if len(found) == 1 else Path()) / page.NAME).expanduser()
    with watching(screen, quiet=not screen.is_terminal) as observer:
        observer.begin("runs", len(found))
        runs = []
        for folder in found:
            runs.append(load_run(folder))
            observer.advance("runs")
        observer.end("runs")
        if path.is_dir():
            raise UserError(f"{path} is a folder: give --to the name of a file, such as {path / page.NAME}.")
        observer.begin("page", 0)
        page.write(path, runs, title=title)
    screen.print(Text(f"{path}: a page of {count(len(runs), 'run')}."), soft_wrap=True)


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Folders of runs: those given, and those within given folders that are none themselves, by name; each once.

    Raises:
        UserError: there is no run in one of them.
    """
    from weft.comparison.compared_page import CELLS, is_comparison
    from weft.storage.remedy import EXPERIMENT, check_begun

    found: dict[Path, Path] = {}
    for folder in (path.expanduser() for path in given):
        if (folder / EXPERIMENT).is_file() or not folder.is_dir():
            inside = [folder]  # where there is none, whoever loads it says so
        else:
            place = folder / CELLS if is_comparison(folder) else folder
            inside = sorted(one for one in place.iterdir() if (one / EXPERIMENT).is_file())
        if not inside:
            check_begun(folder)
            raise UserError(f"{folder} holds no run: give the folder of a run, such as runs/fedit-pydocs-minilm-s0.")
        for one in inside:
            found.setdefault(one.resolve(), one)
    return list(found.values())
