"""Natural clients: which column of a table tells whose a row is, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft.checks import table_files as checks
from weft.data.rows import Rows
from weft.data.spelling import spelled
from weft.errors import UserError

KEYS = (
    "client", "client_id", "user", "user_id", "domain", "lang", "language", "speaker", "author", "site",
    "hospital", "genre", "group", "source", "style",
)  # fmt: skip


def natural_key(table: Mapping[str, Sequence[Any]], names: Iterable[str]) -> tuple[str, int] | None:
    """The first column called by one of these names, if it tells clients apart, and how many; None otherwise."""
    lower = {name.lower(): name for name in reversed(list(table))}
    key = next((lower[name] for name in names if name in lower), None)
    if key is None:
        return None
    told = [value for value in map(spelled, table[key]) if value is not None]
    different = len(set(told))
    fits = 2 * len(told) >= len(table[key]) and 2 <= different <= max(2, len(table[key]) // 2)
    return (key, different) if fits else None


def of_keys(name: str, key: str | None, train: Rows, test: Rows | None) -> list[str]:
    """What is said of the natural keys of rows.

    Raises:
        UserError: no training row has one, where there is a column for them.
    """
    keys, tested = train.keys, None if test is None else test.keys
    if keys is None or key is None:
        return []
    if not any(keys):
        raise UserError(f'column "{key}" of {name} is empty in every training row: name another with --key.')
    return [
        *checks.keyless(name, key, sum(not own for own in keys), len(keys)),
        *checks.new_keys(name, key, keys, [own for own in tested or () if own]),
    ]
