"""Rows of questions about pictures that contradict themselves: plain data in, sentences for a person out."""

from __future__ import annotations

from collections.abc import Sequence

UNEQUAL = "with another number of answers than of questions"
NO_CHOICE = "whose answer is none of their choices"
OUTSIDE = "whose box is none, or not inside the picture"


def left_out(where: str, split: str, rows: Sequence[int], of: int, why: str) -> list[str]:
    """A note on rows that are not used.

    Args:
        rows: their numbers in the table, from 0. of: how many the table has. why: a clause, such as :data:`UNEQUAL`.
    """
    return [f"{where}: left out {len(rows)} of {of} {split} rows {why}, first row {rows[0]}."] if rows else []
