"""The one spelling of a class, of a natural key and of a column, whatever file it stands in.

A csv writes ``0.0``, ``True`` and ``café`` (in two ways) where a parquet file holds 0.0, true and "café". What is one thing to a
person must be one class, and what a person wrote as two things (``00501`` and ``501``) must stay two: how a value is spelt
depends on that value alone, never on what else a file holds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

TRUTHS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}  # of pandas and of spreadsheets
BYTE_ORDER_MARK = "\ufeff"


def spelled(value: Any) -> str | None:
    """A value as a class or key, None where it is empty: a null, NaN or blank.

    Whole floats are integers, as a number and where their text is just what such a float prints as (``1.0``, not ``1.00``).
    Truth values are ``true`` and ``false``. Any other text stays, in Unicode's composed form and without blanks around it.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else repr(value)
    text = unicodedata.normalize("NFC", str(value)).strip()
    return (TRUTHS.get(text) or _whole(text) or text) if text else None


def _whole(text: str) -> str | None:
    """``12.0`` as ``12``; None for a text that is not what a whole float prints as."""
    if text[0] not in "-0123456789" or len(text) > 24:  # the longest float prints as 24 characters
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() and repr(number) == text else None


def number(name: str) -> int | None:
    """The integer that a spelled value is, None where it is another text (also ``007``, which would lose its zeros)."""
    digits = name.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 4000):
        return None
    value = int(name)
    return value if str(value) == name else None


def in_order(names: Iterable[str]) -> list[str]:
    """Classes by size where all are numbers, else by name."""
    found = list(names)
    if all(number(name) is not None for name in found):
        return sorted(found, key=int)
    return sorted(found)


def column(name: str) -> str:
    """A column's name without blanks around it, in Unicode's composed form."""
    return unicodedata.normalize("NFC", name).strip().strip(BYTE_ORDER_MARK).strip()
