"""``weft audit``: what can be learnt from what a run has sent, and from the model that it has made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.listings import Json, show_json
from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting
from weft.runs.audit_file import NAME

if TYPE_CHECKING:
    from rich.table import Table

    from weft.audits.attacks import Audit


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="`tokens`, `labels`, `update-tokens`, `inversion`, `property`, `membership`, `lira`, `epsilon` or `canary`.",
            show_default="all that the run allows",
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Whose updates are attacked.", show_default="the first of which some are kept"),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="SD,SD,...",
            help="Of `tokens`: standard deviations of noise that clients add to what they send, each tried.",
            show_default="the run's own",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of `tokens`: training rows of each client at most.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Of `inversion`: of the optimizer that looks for pictures.")] = 300,
    canary: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Of `canary`: a secret that an answer among the training rows holds.", show_default=False
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(min=0, help="Of `lira`: runs that are played anew on half of the rows.", show_default="none, and no lira"),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Attack a finished run: its clients, as one who sees what they send, and its model, as one who has got it.

    What each attack finds is kept in the run's folder (audit.json), and shown by weft report.

    [bold]Examples[/bold]

      weft audit runs/fedit-digits-glyph-vit-s0
      weft audit runs/fedit-digits-glyph-vit-s0 --attack membership,epsilon
      weft audit runs/fedbert-docstrings-docs-mlm-s0 --attack tokens --noise 0,0.5,1,2
    """
    from rich.text import Text

    screen = out(stderr=as_json)
    with starting(screen, as_json):
        from weft.audits import attacks
        from weft.audits.audited import Asked

        names = [name.strip() for name in attack.split(",")] if attack is not None else []
        asked = Asked(noise=() if noise is None else _numbers(noise), rows=rows, steps=steps, canary=canary, shadows=shadows)
        found = attacks.audit(run, names, asked, at)
    if as_json:
        show_json({"results": [one.record() for one in found.outcomes], "skipped": found.skipped, "trouble": found.trouble})
        return
    if found.outcomes:
        screen.print(_table(found))
    for one in found.outcomes:
        screen.print(Text(f"{one.attack}: {one.sentence}"), soft_wrap=True)
    for name, why in found.skipped.items():
        screen.print(Text(f"{name}: not tried, since {why}.", style="dim"), soft_wrap=True)
    if found.trouble is not None:
        screen.print(Text(f"Not kept in the folder: {found.trouble}", style="yellow"), soft_wrap=True)
    elif found.outcomes:
        screen.print(Text(f"Kept in {run.expanduser() / NAME}; weft report {run} shows it.", style="dim"), soft_wrap=True)


def _table(found: Audit) -> Table:
    from rich.table import Table

    table = Table("attack", "target", "measure", box=None, pad_edge=False)
    for column in ("score", "by chance", "n", "found"):
        table.add_column(column, justify="right")
    for one in found.outcomes:
        numbers = (f"{one.score:.3f}", f"{one.chance:.3f}", f"{one.n:,}", "yes" if one.found else "no")
        table.add_row(one.attack, one.target, one.measure, *numbers)
    return table


def _numbers(text: str) -> list[float]:
    """
    Raises:
        UserError: one of those that commas join is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f'noise is "{text}", but must be numbers joined by commas, as in --noise 0,0.5,1.') from None
