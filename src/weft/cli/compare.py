"""``weft compare``: many methods on the same rows, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.run import OUTPUT, Quiet
from weft.report.console import out
from weft.report.progress import starting

GRID = "Grid"
OWN = ("method", "baseline", "baselines", "seed", "name")
"""Settings that differ from cell to cell in a way of their own."""


def compare(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[GRID.toml]", help="A grid in a file; what is typed here wins.", show_default=False),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", "-m", metavar="A,B,…", help="Methods, and baselines (local, central, probe).", rich_help_panel=GRID
        ),
    ] = "",
    seeds: Annotated[
        str | None, typer.Option(metavar="N|A,B,…", help="How many seeds, or which.", rich_help_panel=GRID, show_default="1")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(metavar="NAME=V1,V2,…", help="Choose a setting of each method on validation rows.", rich_help_panel=GRID),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any setting of all cells; a TOML list is a dimension.", rich_help_panel="What"
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison. \\[default: runs/compare-…]", rich_help_panel=OUTPUT, show_default=False),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes beside each other.", rich_help_panel=OUTPUT)] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells, bytes and time, and play none.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all cells as JSON on stdout and nothing else there.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Compare methods: the same rows, seeds, work and byte counter for each, and one table.

    [bold]Examples[/bold]

      weft compare --methods fedit,ffa-lora,flora --alpha 0.1,0.5 --seeds 3 --rounds 20
      weft compare --methods local,central,fedit,fedsa-lora --data reviews.csv --seeds 5
      weft compare --methods fedit,fedsa-lora --tune lr=1e-4,3e-4,1e-3
      weft compare grid.toml --jobs 2

    Commas in a setting of numbers or choices make a dimension of the grid. Methods have
    their papers' optimizers and, unless you say otherwise, one local epoch in batches of
    32. A finished cell is never played twice, and the same command goes on after a stop.
    """
    from weft import experiment

    typed = experiment.assignments(set_ or (), context.obj)
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        from weft.cli import comparing
        from weft.comparison.cell_grid import read_grid
        from weft.comparison.play import usual_folder

        runs, report = Path(str(typed.pop("runs", "runs"))).expanduser(), bool(typed.pop("report", True))
        grid = read_grid(file, typed, [m.strip() for m in methods.split(",") if m.strip()], seeds, tune)
        folder = to.expanduser() if to is not None else usual_folder(grid, runs)
    if dry_run:
        comparing.rehearse(out(), grid, folder, jobs, as_json)
        return
    comparing.play(out(), screen, grid, folder, jobs, report, quiet, as_json)
