"""Rows with a number instead of a class: from columns to a source for regression."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.checks import table_files as checks
from weft.data.columns import SPLITS, Columns, Table, rows_of, too_many, usable, with_test
from weft.data.rows import Rows, Source
from weft.errors import UserError, printable

LARGEST = 1e15  # that a number may be: the squares of larger ones are none in single precision, or swallow those of others


def as_number(value: Any) -> float | None:
    """A value as a number; None for what is none, as ``1_0`` is none though Python reads it as 10."""
    try:
        return None if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def meant(column: Sequence[Any]) -> bool:
    """Whether a column holds numbers that are no classes: with fractions, or too many different ones."""
    found: set[float] = set()
    rows = 0
    for value in column:
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        number = as_number(value)
        if number is None:
            return False
        rows += 1
        found.add(number)
    return any(math.isfinite(n) and not n.is_integer() for n in found) or too_many(len(found), rows)


def build(name: str, splits: Mapping[str, Table], columns: Columns, *, notes: Iterable[str] = ()) -> Source:
    """The source of rows with numbers, but for its fingerprint. Its one class is what the number is called.

    Rows without text (or picture) or number are dropped and counted, and so is a split without any. All rows have the label 0, so
    that they are dealt out as if they were of one class.

    Raises:
        UserError: a value that is no number, or no training rows.
    """
    said = [*notes, *columns.notes]
    parts: dict[str, Rows] = {}
    first = 0
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        n = len(next(iter(table.values()), []))
        values = [_number(value, name, columns.label) for value in table.get(columns.label, [None] * n)]
        found = usable(table, [None if value is None else "" for value in values], columns)
        if found is None:
            said += checks.hidden(name, split)
        else:
            kept = np.flatnonzero(found)
            said += checks.dropped(name, split, n, len(kept), columns.content)
            own = np.array([values[i] for i in kept.tolist()], dtype=np.float64)
            parts[split] = replace(rows_of(table, kept, columns, [0] * len(kept), first), numbers=own)
        first += n
    if not len(parts.get("train", ())):
        raise UserError(f"{name} has no training rows with {columns.content} and number: check --text and --label.")
    said += with_test(name, parts, "labelled test split")
    return Source(
        name=name,
        classes=(columns.label,),
        train=parts["train"],
        test=parts.get("test"),
        validation=parts.get("validation"),
        key_name=columns.key,
        label_name=columns.label,
        notes=tuple(map(printable, said)),
    )


def from_classes(source: Source) -> Source:
    """A source whose classes are called by numbers, as one of these numbers.

    Raises:
        UserError: a class is no number.
    """
    name = source.label_name or "number"
    numbers = np.array([_number(called, source.name, name) for called in source.classes], dtype=np.float64)

    def numbered(rows: Rows) -> Rows:
        return replace(rows, labels=np.zeros(len(rows), np.int64), numbers=numbers[rows.labels])

    return source.each(numbered, (name,))


def _number(value: Any, where: str, column: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = as_number(value)
    if found is None:
        raise UserError(
            f'column "{column}" of {where} holds {value!r:.40}, which is no number: --task regression needs numbers; name '
            "another column with --label."
        )
    if abs(found) > LARGEST:
        raise UserError(
            f'column "{column}" of {where} holds {value!r:.40}, more than {LARGEST:g}: leave the row out, or scale them.'
        )
    return found if math.isfinite(found) else None
