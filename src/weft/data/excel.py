"""The first sheet of an Excel workbook, read as a csv file that was saved from it would be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.checks import table_files as checks
from weft.errors import UserError

OLD = b"\xd0\xcf\x11\xe0"  # how .xls begins, and a workbook with a password


def excel(path: Path, notes: list[str]) -> tuple[list[str], list[list[str]]]:
    """Names and columns of a workbook's first visible sheet; findings are added to ``notes``.

    Rows without any value are passed over. Rows that are wider than the header give columns without a name.

    Raises:
        UserError: openpyxl is missing, or the file is no workbook that it reads.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(
            f"{path.name} is an Excel workbook, which openpyxl reads: pip install openpyxl, or save the sheet as csv."
        ) from error
    with path.open("rb") as file:
        if file.read(4) == OLD:
            raise UserError(f"{path} is an old .xls file or has a password: save it as .xlsx without one, or as csv.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts of a workbook that hold no values
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
                titles = [sheet.title for sheet in sheets]
                rows, errors = _rows(sheets[0])
            finally:
                book.close()
    except Exception as error:  # a damaged archive fails in many ways, none of which is worth a traceback
        reason = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
        raise UserError(f"{path} can't be read as an Excel workbook ({reason}): save it anew, or as csv.") from error
    notes += checks.sheets(path.name, titles)
    notes += checks.error_cells(path.name, errors)
    width = max(map(len, rows), default=0)
    whole = [row + [""] * (width - len(row)) for row in rows]
    return (whole[0], [list(values) for values in zip(*whole[1:], strict=True)] or [[] for _ in whole[0]]) if whole else ([], [])


def _rows(sheet: Any) -> tuple[list[list[str]], int]:
    """Rows that hold something, and the number of cells that hold an error."""
    if hasattr(sheet, "reset_dimensions"):
        sheet.reset_dimensions()  # some programs write a wrong size, and rows beyond it would be lost
    errors = 0

    def values(row: Any) -> Iterator[str]:
        nonlocal errors
        for cell in row:
            if cell.data_type == "e":
                errors += 1
                yield ""
            else:
                yield _text(cell.value)

    rows = [list(values(row)) for row in sheet.iter_rows()]
    return [row for row in rows if any(value.strip() for value in row)], errors


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
