"""``weft run`` and ``weft resume``: train a federation and watch it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.report.console import out
from weft.report.progress import starting, watching

if TYPE_CHECKING:
    from rich.console import Console

    from weft.playing.run import Run
    from weft.runs.shelf import Shelf

OUTPUT = "Output"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]
Json = Annotated[
    bool, typer.Option("--json", help="Print summary.json on stdout and nothing else there.", rich_help_panel=OUTPUT)
]


def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[EXPERIMENT.toml]", help="Settings in a file; those typed here win.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting, for instance method.rank=16 or method.lr=1e-3; as often as you like.",
            rich_help_panel="What",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Run so often and check that the numbers are the same.", rich_help_panel=OUTPUT)
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print plan, sizes and bytes, train nothing.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a federation. Without arguments: fedit on minilm and pydocs with 8 clients, offline, in a few minutes.

    [bold]Examples[/bold]

      weft run
      weft run --method flora --set method.rank=8
      weft run --model roberta-base --data ag_news --clients 20 --alpha 0.3
      weft run --data reviews.csv --text body --label stars
      weft run experiment.toml --seed 1

    Settings come from the method's paper. A recipe for the backbone and data lies
    over them where there is one, and what you type over both; what differs
    from the paper is printed first. Results go to runs/NAME.
    """
    from weft import experiment

    typed = experiment.assignments(set_ or (), context.obj)
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        resolved = experiment.resolve(typed, experiment.read(file) if file else None)
        from weft import start
        from weft.cli import plan
        from weft.runs.shelf import Shelf
    if not quiet:
        plan.header(screen, resolved)
    if dry_run:
        with watching(screen, quiet) as observer:
            plan.rehearse(out(), resolved, as_json, observer)
        return
    shelf = Shelf()
    with watching(screen, quiet) as observer:
        done = start.start(resolved, observer=observer, repeat=repeat, shelf=shelf)
    show(done, screen, quiet, as_json, shelf)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/fedit-pydocs-minilm-s0.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed; the numbers are those of a run that never was.

    [bold]Example[/bold]

      weft resume runs/fedit-pydocs-minilm-s0
    """
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        from weft import start
        from weft.playing.run import load_run
        from weft.runs.shelf import Shelf

        before, shelf = load_run(folder), Shelf()
    with watching(screen, quiet) as observer:
        for line in before.rounds:
            observer.round_done(line)
        done = start.resume(folder, observer=observer, shelf=shelf)
    show(done, screen, quiet, as_json, shelf)


def show(done: Run, screen: Console, quiet: bool, as_json: bool, shelf: Shelf) -> None:
    """The outcome: for programs, for people, or not at all.

    Args:
        shelf: of the run, for what is proposed to run next.
    """
    if as_json:
        typer.echo((done.folder / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        from weft.cli import plan

        plan.outcome(screen, done)
        plan.farewell(screen, done, shelf)
