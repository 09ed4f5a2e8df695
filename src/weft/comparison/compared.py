"""What a comparison has found, and the files of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.comparison import compared_page, own_terms
from weft.comparison import compared_tables as tables
from weft.comparison.cell_grid import Grid
from weft.comparison.cells import Done
from weft.comparison.records import record
from weft.comparison.tuning import Choice
from weft.playing.run import framed
from weft.report.table import Table
from weft.storage import files
from weft.words import count, shown

NAMED = 8
"""Methods that a page names in its title."""


class Comparison:
    """The cells of a grid with their numbers.

    Attributes:
        folder: where everything lies. grid: what was asked for. cells: in the order of the grid. choices: of the search.
    """

    def __init__(self, folder: Path, grid: Grid, cells: Sequence[Done], choices: Sequence[Choice] = ()):
        self.folder, self.grid, self.cells, self.choices = folder, grid, list(cells), list(choices)

    def records(self) -> list[dict[str, Any]]:
        """A flat row for each cell, see :func:`weft.comparison.records.record`."""
        return [record(done) for done in self.cells]

    def frame(self) -> Any:
        """:meth:`records` as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        return framed(self.records(), "comparison.frame()", "comparison.records()")

    def tables(self) -> list[Table]:
        """One for each place of the grid, the paired differences last."""
        found = self.records()
        between = tables.of_differences(self.grid, found)
        return [*tables.of_places(self.grid, found), *([] if between is None else [between])]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the tables."""
        lacking = [f"{slug} has no {', '.join(names)}." for slug, names in self.grid.lacking().items()]
        idle = [
            f"{name} makes no difference here: the numbers are the same for all its values."
            for name in tables.without_effect(self.grid, self.records())
        ]
        own = own_terms.differing(self.grid)
        return [*lacking, *own, *idle, *dict.fromkeys(f"{c.note} ({self._place(c)})" if c.at else c.note for c in self.choices)]

    def _place(self, choice: Choice) -> str:
        return ", ".join(f"{n} {shown(v)}" for n, v in choice.at.items())

    @property
    def failed(self) -> list[Done]:
        return [done for done in self.cells if done.summary is None]

    def report(self, to: Path | None = None) -> Path:
        """Write one page of the tables and of all finished cells; returns the file.

        Args:
            to: the file; None = ``report.html`` in the folder.

        Raises:
            UserError: no cell is finished, or the file can't be written.
        """
        return compared_page.write(self.folder, to)

    def write(self) -> None:
        """``table.md``, ``table.csv``, ``table.tex`` and ``cells.json``, of which :meth:`report` makes the page."""
        found, names = self.tables(), self.grid.methods
        texts = {
            "table.md": "\n".join(f"## {t.title}\n\n{t.markdown()}" for t in found)
            + ("\n" + "\n".join(f"- {n}" for n in self.notes) + "\n" if self.notes else ""),
            "table.tex": "\n".join(f"% {t.title}\n{t.latex()}" for t in found),
            "table.csv": "\n".join(f"# {t.title}\n{t.csv()}" for t in found),
        }
        for name, text in texts.items():
            files.write(self.folder / name, text.encode())
        content = {
            "format": files.FORMAT,
            "title": f"{', '.join(names) if len(names) <= NAMED else count(len(names), 'method')} compared",
            "cells": [r | {"label": d.cell.label} for r, d in zip(self.records(), self.cells, strict=True)],
            "notes": self.notes,
            "tables": [compared_page.written(t) for t in found],
        }
        files.write(self.folder / "cells.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def __repr__(self) -> str:
        bad = f", {len(self.failed)} without a result" if self.failed else ""
        return f"<Comparison {self.folder}: {count(len(self.cells), 'cell')}{bad}>"
