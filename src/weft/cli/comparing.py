"""A comparison for people: the plan, progress, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from weft.cli.grids import grid as table_of
from weft.report.progress import watching
from weft.words import count

if TYPE_CHECKING:
    from rich.console import Console

    from weft.comparison.cell_grid import Grid
    from weft.comparison.cells import Planned
    from weft.report.table import Table


def play(out: Console, screen: Console, grid: Grid, folder: Path, jobs: int, report: bool, quiet: bool, as_json: bool) -> None:
    """Play the grid, and print its tables."""
    from weft.comparison.play import compare

    if not quiet:
        heading(screen, grid)
    with watching(screen, quiet) as observer:
        found = compare(grid, folder, None, jobs, observer, report)
    if as_json:
        out.print(json.dumps(found.records(), indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
        return
    if quiet:
        return
    for table in found.tables():
        show(screen, table)
    for note in found.notes:
        screen.print(Text(note), soft_wrap=not screen.is_terminal)
    screen.print()
    page = "report.html, " if report else ""
    files = f"{page}table.md, table.csv, table.tex, cells.json, and a run for each cell"
    screen.print(Text(f"Saved in {folder}: {files}."), soft_wrap=True)


def heading(out: Console, grid: Grid) -> None:
    """What is compared."""
    cells = len(grid.cells())
    out.print(Text.assemble(("compare ", "bold cyan"), ", ".join(grid.methods)))
    sizes = [count(len(grid.methods), "method")]
    sizes += [f"{name} {', '.join(map(str, values))}" for name, values in grid.dimensions.items()]
    sizes += [count(len(grid.seeds), "seed"), count(cells, "cell")]
    out.print(" · ".join(sizes), markup=False)
    if grid.tune is not None:
        out.print(f"{grid.tune[0]} is chosen among {', '.join(map(str, grid.tune[1]))} on validation rows.", markup=False)
    out.print()


def show(out: Console, table: Table) -> None:
    """A table at the terminal: as many of its columns as there is room for, but those without an entry."""
    kept, room = [], out.width if out.is_terminal else 1 << 16
    for i, head in enumerate(table.columns):
        width = max(map(len, (head, *(row[i] for row in table.rows)))) + 1
        if (i == 0 or any(row[i] for row in table.rows)) and width <= room:
            kept.append(i)
            room -= width
    drawn = table_of(*(f">{table.columns[i]}" if table.numeric(i) else table.columns[i] for i in kept))
    for number, row in enumerate(table.rows):
        drawn.add_row(*(Text(row[i], style="bold" if (number, i) in table.bold else "") for i in kept))
    out.print(Text(table.title, style="bold"))
    out.print(drawn)
    for note in table.notes:
        out.print(Text(note, style="dim"), soft_wrap=not out.is_terminal)
    out.print()


def rehearse(out: Console, grid: Grid, folder: Path, jobs: int, as_json: bool) -> None:
    """``--dry-run``: every cell, what there is of it already, what each method sends, and how long the rest may take.

    Raises:
        UserError: whatever would be refused before the first cell.
    """
    from weft.cli.costs import costs
    from weft.comparison import cells as on_disk
    from weft.comparison import own_terms
    from weft.comparison.compared_page import CELLS
    from weft.comparison.play import check_energy
    from weft.engines.observer import Observer

    plans = [on_disk.planned(cell, folder / CELLS, None) for cell in grid.cells()]
    on_disk.check(grid, plans)
    check_energy(plans, jobs, Observer())
    lacking = grid.lacking()
    found = costs(grid, folder)
    cells = [(p, _state(p)) for p in plans]
    if as_json:
        content = {"cells": [{"cell": p.cell.label, "state": s, "run": str(p.place)} for p, s in cells], "methods": found}
        out.print(json.dumps(content, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
        return
    heading(out, grid)
    drawn = table_of("cell", "state")
    for plan, state in cells:
        drawn.add_row(plan.cell.label, state)
    out.print(drawn)
    out.print()
    drawn = table_of("method", ">up, bytes a client and round", ">down", ">a cell, s")
    for name, about in found.items():
        drawn.add_row(name, *(_number(about[k]) for k in ("up", "down", "seconds")))
    out.print(drawn)
    out.print()
    for row, about in found.items():
        if about["reason"]:
            out.print(f"{row} would not run: {about['reason']}", markup=False)
    for slug, names in lacking.items():
        out.print(f"{slug} has no {', '.join(names)}.", markup=False)
    for sentence in own_terms.differing(grid):
        out.print(sentence, markup=False)
    left = [p.cell.row for p, state in cells if state in ("to be played", "goes on")]
    seconds = sum(found[row]["seconds"] or 0.0 for row in left if row in found)
    tried = "" if grid.tune is None else f", and the tries of {grid.tune[0]} besides"
    out.print(f"{count(len(left), 'cell')} to be played: about {seconds / 60:.0f} min one after the other{tried}.", markup=False)
    out.print("Nothing was trained or written; without --dry-run the comparison starts.")


def _state(plan: Planned) -> str:
    from weft.comparison.cells import finished

    if plan.resolved is None:
        return plan.reason
    if finished(plan.place) is not None:
        return "finished"
    return "goes on" if (plan.place / "experiment.toml").is_file() else "to be played"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}"
