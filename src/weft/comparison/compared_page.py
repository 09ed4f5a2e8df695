"""The page of a comparison, of the files in its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.report.table import Table
from weft.storage import files

CONTENT, CELLS = "cells.json", "cells"


def is_comparison(folder: Path) -> bool:
    return (folder / CONTENT).is_file() and (folder / CELLS).is_dir()


def written(table: Table) -> dict[str, Any]:
    """As ``cells.json`` holds it."""
    return asdict(table) | {"bold": sorted(table.bold)}


def write(folder: Path, to: Path | None = None) -> Path:
    """Write one page of a comparison's tables and of its finished cells; returns the file.

    Args:
        folder: of the comparison. to: the file; None = ``report.html`` in the folder.

    Raises:
        UserError: no cell is finished, a file is damaged or missing, or the page can't be written.
    """
    from weft.playing.run import load_run
    from weft.report import page

    source = folder / CONTENT
    try:
        content = files.parsed(files.read(source))
        cells = [cell for cell in content["cells"] if cell["finished"]]
        tables = [_read(table) for table in content["tables"]]
        labels, runs, title = [c["label"] for c in cells], [c["run"] for c in cells], content["title"]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{source} is none that weft compare wrote: type the comparison again, which plays no cell twice.") from e
    if not cells:
        raise UserError("no cell of the comparison is finished, so that there is nothing to draw.")
    path = to or folder / page.NAME
    found = [load_run(folder / CELLS / name) for name in runs]
    page.write(path, found, title=title, labels=labels, tables=tables, notes=content["notes"])
    return path


def _read(table: Mapping[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in table["rows"])
    bold = frozenset((row, column) for row, column in table["bold"])
    shades = tuple((row, column, dark) for row, column, dark in table.get("shades", ()))
    return Table(table["title"], tuple(table["columns"]), rows, bold, tuple(table["notes"]), shades)
