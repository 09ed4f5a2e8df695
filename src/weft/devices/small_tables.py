"""Small tables that people write: a CSV with columns of known names, or TOML."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weft.errors import UserError


def tables(path: Path, what: str) -> dict[str, Any]:
    """What a file of TOML holds.

    Args:
        what: it is of, for sentences.

    Raises:
        UserError: it can't be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"the file of {what} {path} can't be read: {e.strerror}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"the file of {what} {path} is no TOML: {e}.") from e


def rows(path: Path, what: str, columns: Sequence[str], how: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines with their numbers, without those that are empty or begin with ``#``.

    Args:
        what: the file is, for sentences. columns: it must have; ``a|b`` is one of both. how: it should be.

    Raises:
        UserError: it can't be read, or lacks a column.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        raise UserError(f"the {what} {path} can't be read: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise UserError(f"the {what} {path} is no text in UTF-8: save it as CSV in UTF-8.") from e
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    table = csv.DictReader(line for _, line in kept)
    names = set(table.fieldnames or ())
    if len(kept) < 2 or any(not names & set(column.split("|")) for column in columns):
        raise UserError(f"the {what} {path} has no lines with these columns: {how}.")
    for (number, _), row in zip(kept[1:], table, strict=True):
        yield number, {name: value or "" for name, value in row.items() if name is not None}
