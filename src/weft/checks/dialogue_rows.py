"""Rows to generate from that were read, compared with what can be learnt from: plain data in, sentences for a person out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from weft.checks.table_files import some
from weft.errors import UserError


def turn(at: str, value: Any, keys: bool) -> None:
    """Refuse a turn that has no role and text of its own.

    Args:
        at: what a sentence calls the row. keys: whether the turn has both.

    Raises:
        UserError: it has not.
    """
    if not keys:
        raise UserError(
            f'{at} holds {value!r:.60} instead of a turn: write turns as {{"role": "user", "content": "…"}}, or as '
            '{"from": "human", "value": "…"}.'
        )


def role(at: str, value: Any, known: Collection[str]) -> None:
    """Raises:
    UserError: a turn has another role than those known.
    """
    if value not in known:
        raise UserError(f"{at} has a turn of {value!r:.40}: roles are {', '.join(known)}.")


def said(at: str, value: Any) -> None:
    """Raises:
    UserError: what a turn says is no text.
    """
    if not isinstance(value, str):
        raise UserError(
            f"{at} has a turn that says {value!r:.60}, which is no text: leave pictures, sound and calls of tools out of chats."
        )


def order(at: str, roles: Sequence[str]) -> None:
    """Refuse turns that do not alternate from the user to the assistant, but for a system turn at the start.

    Args:
        roles: of the turns, without the system turn at the start; at least one.

    Raises:
        UserError: they do not.
    """
    fault = None
    if "system" in roles:
        fault = "has a system turn after other turns: put it first"
    elif roles[0] == "assistant":
        fault = "starts with a turn of the assistant: start with one of the user"
    elif again := next((one for one, other in pairwise(roles) if one == other), None):
        fault = f"has two turns of the {again} one after the other: join them"
    elif roles[-1] != "assistant":
        fault = "ends without an answer of the assistant: leave its last turn out"
    if fault:
        raise UserError(f"{at} {fault}.")


def text(at: str, column: str, value: Any, option: str) -> None:
    """Raises:
    UserError: a value of a column that is read as text is none.
    """
    if not isinstance(value, str):
        raise UserError(f'{at} holds {value!r:.60} in column "{column}", which is no text: name another column with {option}.')


def dropped(where: str, split: str, rows: int, kept: int) -> list[str]:
    """A note on rows without an answer, or with nothing that is answered."""
    if rows == kept:
        return []
    return [f"{where}: dropped {rows - kept} of {rows} {split} rows without an answer, or without what it answers."]


def unpaired(where: str, split: str, rows: int, kept: int) -> list[str]:
    """A note on rows whose two answers can't be compared."""
    if rows == kept:
        return []
    return [f"{where}: dropped {rows - kept} of {rows} {split} rows without two different answers to one prompt."]


def directions(where: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A note on the direction in which translations are read that have none of their own."""
    read = some(f"{first} to {second}" for first, second in pairs)
    return [f"{where}: translations are read from {read}; another direction is named with --text and --label."]
