"""Rows in JSON: one object a line, a list of objects, or an object of columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from weft.checks import table_files as checks
from weft.data.spelling import column
from weft.errors import UserError

BROKEN = re.compile("[\ud800-\udfff]")  # halves of a character, which JSON can write ("\ud83d") and UTF-8 can't
INSTEAD = "\N{REPLACEMENT CHARACTER}"
Columns = tuple[list[str], list[list[Any]]]


def json_lines(path: Path, text: str, notes: list[str]) -> Columns:
    """Names and columns of a file with an object in each line; findings are added to ``notes``.

    Raises:
        UserError: a line is no JSON, or no object.
    """
    return _mended(path, *_from_objects(path, _lines(path, text)), notes)


def json_file(path: Path, text: str, notes: list[str]) -> Columns:
    """Names and columns of a file with a list of objects, alone or in an object, or an object of columns of one length.

    Raises:
        UserError: it is no JSON, or holds no rows.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # one object a line under the name .json
            return json_lines(path, text, notes)
        raise _no_json(path, getattr(error, "lineno", None), error) from error
    if isinstance(value, dict):
        columns = [v for v in value.values() if isinstance(v, list)]
        if len(columns) == len(value) > 1 and len({len(v) for v in columns}) == 1:
            return _mended(path, list(value), columns, notes)
        by_row = len(value) > 1 and all(isinstance(v, dict) for v in value.values())
        if by_row and len({tuple(v) for v in value.values()}) == 1:
            return _mended(path, list(value), [list(v.values()) for v in value.values()], notes)  # pandas
        value = columns[0] if len(columns) == 1 else None  # such as {"version": …, "data": [ … ]}
    if not isinstance(value, list):
        raise UserError(f"{path} holds no list of rows: give a list of objects, or one object a line.")
    return _mended(path, *_from_objects(path, enumerate(value, 1)), notes)


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise _no_json(path, number, error) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'"{next(n for n in names if names.count(n) > 1)}" stands in one object twice')
    return found


def _no_json(path: Path, line: int | None, error: Exception) -> UserError:
    where = f"{path}:{line}" if line else str(path)
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{where} is not JSON ({error.msg} at column {error.colno}).")
    reason = "too many objects in each other" if isinstance(error, RecursionError) else str(error).split(";")[0]
    return UserError(f"{where} can't be read as JSON ({reason}).")


def _from_objects(path: Path, objects: Iterable[tuple[int, Any]]) -> Columns:
    rows = []
    for number, value in objects:
        if not isinstance(value, dict):
            raise UserError(f'{path}:{number} is not an object of columns, such as {{"text": …, "label": …}}.')
        rows.append(value)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [[row.get(name) for row in rows] for name in names]


def _mended(path: Path, names: list[str], columns: list[list[Any]], notes: list[str]) -> Columns:
    """Without broken characters."""
    characters = cells = 0

    def mended(value: Any) -> Any:
        nonlocal characters, cells
        if isinstance(value, list):
            return [mended(one) for one in value]
        if isinstance(value, dict):
            return {name: mended(one) for name, one in value.items()}
        if not isinstance(value, str) or not BROKEN.search(value):
            return value
        whole, n = BROKEN.subn(INSTEAD, value)
        characters, cells = characters + n, cells + 1
        return whole

    found = [mended(column(name)) for name in names], [[mended(value) for value in values] for values in columns]
    notes += checks.replaced(path.name, characters, cells)
    return found
