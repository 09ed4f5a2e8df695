"""``weft runs`` and ``weft diff``: which runs there are, and in what they differ."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weft.backbones.short_names import encoders
from weft.cli.listings import Json, show_json
from weft.errors import UserError
from weft.report.console import out
from weft.words import count, shown

if TYPE_CHECKING:
    from weft.runs.comparing import Comparison
    from weft.runs.listing import Listed


WIDE = 120
"""Columns of a terminal that shows settings too; most are in a run's usual name."""


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder above the runs.")] = Path("runs"),
    method: Annotated[str | None, typer.Option(help="Only those of this method.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Only those whose data begin with this.", show_default=False)] = None,
    finished: Annotated[bool, typer.Option("--finished", help="Only those that are finished.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only those that are not.")] = False,
    sort: Annotated[
        Literal["name", "when", "accuracy"],
        typer.Option(metavar="ORDER", help="name, when (newest first) or accuracy (the best headline first, by metric)."),
    ] = "name",
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="NAME", help="Remove the run of this name; may be repeated.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --remove: don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """The runs under a folder: how far each came, what it found, what it sent, and why it stands.

    [bold]Examples[/bold]

      weft runs                                   those in ./runs
      weft runs --method flora --sort accuracy    those of one method, the best first
      weft runs --unfinished                      what can be gone on with
      weft runs --remove fedit-pydocs-minilm-s0   remove one, after asking
    """
    from weft.runs import listing

    if finished and unfinished:
        raise UserError("no run is both finished and unfinished: leave --finished or --unfinished out.")
    root = folder.expanduser()
    if remove:
        _remove(root, remove, yes)
        return
    if yes:
        raise UserError("--yes answers the question of --remove, which is not there: leave it out.")
    found = listing.in_order(
        listing.chosen(
            [listing.listed(path, root) for path in listing.folders(root)],
            method=method,
            data=data,
            finished=finished if finished or unfinished else None,
        ),
        sort,
    )
    if as_json:
        show_json([run.as_json() for run in found])
        return
    _show(found, root)


def _show(found: Sequence[Listed], root: Path) -> None:
    from rich.text import Text

    from weft.cli.grids import grid
    from weft.communication.ledger import format_bytes
    from weft.report.console import visible

    screen = out()
    if not found:
        screen.print(f"No such run under {root}.", markup=False)
        return
    wide = ("method", "data", "model", ">seed") if screen.width >= WIDE else ()
    table = grid("name", *wide, ">rounds", ">headline", ">up", "when", "state")
    colours = {"finished": "green", "running": "cyan", "unfinished": "yellow"}
    for run in found:
        value = "" if run.value is None else f"{run.value:.3f}" if abs(run.value) < 1000 else f"{run.value:.3g}"
        metric = "" if run.metric in (None, "accuracy") else f" {run.metric}"
        settings = (
            " ".join(filter(None, (run.method, run.baseline))),
            run.data or "",
            ",".join("+".join(Path(e).name for e in encoders(one)) for one in (run.model or "").split(",")),
            "" if run.seed is None else str(run.seed),
        )
        cells = (
            *(settings if wide else ()),
            "" if run.rounds is None else f"{run.rounds}/{run.planned}",
            f"{value}{metric}",
            "" if run.bytes_up is None else format_bytes(run.bytes_up),
            (run.started or "").replace("T", " ")[:16],
        )
        state = Text(run.state, style=colours.get(run.state, "red"))
        table.add_row(Text(visible(run.name), style="cyan"), *(Text(visible(cell)) for cell in cells), state)
    screen.print(table)
    if notes := [run for run in found if run.why]:
        screen.print()
        for run in notes:
            screen.print(Text.assemble((f"{visible(run.name)}: ", "bold"), (run.why, "dim")), soft_wrap=not screen.is_terminal)


def _remove(root: Path, names: Sequence[str], yes: bool) -> None:
    from weft.runs import listing

    paths = listing.to_remove(root, names)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to ask whether these runs may go: type --yes too.")
        for path in paths:
            typer.echo(f"  {path}")
        if not typer.confirm(f"Remove {count(len(paths), 'run')} with all that is in there?"):
            typer.echo("Nothing was removed.")
            return
    listing.remove(paths)
    typer.echo(f"Removed {count(len(paths), 'run')}.")


def diff(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN [RUN]...", help="Folders of two or more runs.")],
    as_json: Json = False,
) -> None:
    """In what runs differ: settings, data, weights, versions and results. What is the same in all is left out, and seconds are.

    [bold]Example[/bold]

      weft diff runs/fedit-pydocs-minilm-s0 runs/flora-pydocs-minilm-s0
    """
    from weft.runs.comparing import compare

    found = compare(folders)
    if as_json:
        show_json(found.as_json())
    else:
        _beside(found)


def _beside(found: Comparison) -> None:
    from rich.text import Text

    from weft.cli.grids import grid
    from weft.report.console import visible

    screen = out()
    if found.differences:
        names = [Path(run).resolve().name for run in found.runs]
        table = grid("", *(names if len(set(names)) == len(names) else found.runs))
        group = ""
        for one in found.differences:
            if one.group != group:
                table.add_row(Text(one.group, style="bold"))
                group = one.group
            table.add_row(Text(f"  {one.name}", style="cyan"), *(Text(visible(_cell(value))) for value in one.values))
        screen.print(table)
        screen.print()
    screen.print(found.verdict, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else shown(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text  # a hash, of which the beginning does
