"""One value of a column of chats, translations or answers: the turns, texts or answer in it.

A chat is a list of turns in the form of OpenAI, ``{"role": "user", "content": "…"}``, or of ShareGPT, ``{"from": "human",
"value": "…"}``; or, as older versions of ``datasets`` keep such lists, an object of two lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weft.checks import dialogue_rows as checks
from weft.data.rows import Turns
from weft.data.spelling import spelled

FORMS = (("role", "content"), ("from", "value"))
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
LOOKED_AT = 100  # rows that tell what a column holds


def _most(column: Sequence[Any], fits: Any) -> bool:
    """Whether most rows fit; of another the sentence about it names the row."""
    there = [fits(value) for value in column[:LOOKED_AT] if value is not None]
    return 2 * sum(there) > len(there)


def are_chats(column: Sequence[Any]) -> bool:
    """Whether a column holds lists of turns."""
    return _most(column, _is_chat)


def _is_chat(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(set(form) <= value.keys() and isinstance(value[form[0]], list | np.ndarray) for form in FORMS)
    listed = isinstance(value, list | tuple | np.ndarray) and len(value) > 0
    return listed and isinstance(value[0], Mapping) and any(role in value[0] for role, _ in FORMS)


def are_translations(column: Sequence[Any]) -> bool:
    """Whether a column holds objects of texts by language, two or more of them."""
    return _most(column, lambda value: isinstance(value, Mapping) and len(languages(value)) > 1)


def languages(value: Any) -> list[str]:
    """The languages that a translation is in, in its order."""
    return [name for name, text in value.items() if isinstance(text, str)] if isinstance(value, Mapping) else []


def are_texts(column: Sequence[Any], *, answers: bool = False) -> bool:
    """Whether a column holds texts or, as those of answers may, numbers and lists of texts."""
    return _most(column, lambda value: isinstance(_first(value) if answers else value, (str, int, float) if answers else str))


def text(value: Any, at: str, column: str, option: str, *, answers: bool = False) -> str:
    """A value as text, "" where there is none; of several answers the first.

    Args:
        at: what a sentence calls the row. option: names another column.

    Raises:
        UserError: it is no text.
    """
    if answers:
        value = _first(value)
    if value is None or isinstance(value, bool | int | float):
        return spelled(value) or ""
    checks.text(at, column, value, option)
    return str(value)


def _first(value: Any) -> Any:
    """Of a list of answers the first, also in the form of SQuAD, ``{"text": [ … ]}``; None where there is none."""
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if isinstance(value, list | tuple | np.ndarray):
        return value[0] if len(value) else None
    return value


def last_answer(value: Any, at: str) -> tuple[Turns, str, str] | None:
    """The turns of a chat as (all before, what the user says last, what the assistant answers); None where nobody says anything.

    Args:
        at: what a sentence calls the row.

    Raises:
        UserError: it is no chat, a role is unknown, or roles do not alternate.
    """
    return answered(every_turn(value, at), at)


def answered(found: list[tuple[str, str]], at: str) -> tuple[Turns, str, str] | None:
    """The same of turns that lie ready.

    Raises:
        UserError: roles do not alternate.
    """
    start = 1 if found and found[0][0] == "system" else 0
    if len(found) == start:
        return None
    checks.order(at, [role for role, _ in found[start:]])
    return tuple(found[:-2]), found[-2][1], found[-1][1]


def every_turn(value: Any, at: str) -> list[tuple[str, str]]:
    """All turns of a chat, (role, text).

    Args:
        at: what a sentence calls the row.

    Raises:
        UserError: it is no chat, or a role is unknown.
    """
    if isinstance(value, Mapping):
        form = next((form for form in FORMS if set(form) <= value.keys()), None)
        checks.turn(at, value, form is not None)
        assert form is not None
        value = [{form[0]: role, form[1]: said} for role, said in zip(value[form[0]], value[form[1]], strict=False)]
    if value is None:
        return []
    checks.turn(at, value, isinstance(value, list | tuple | np.ndarray))
    found = []
    for turn in value:
        form = next((f for f in FORMS if isinstance(turn, Mapping) and set(f) <= turn.keys()), None)
        checks.turn(at, turn, form is not None)
        assert form is not None
        role = turn[form[0]].strip().lower() if isinstance(turn[form[0]], str) else turn[form[0]]
        checks.role(at, role, ROLES)
        said = _in_pieces(turn[form[1]])
        checks.said(at, said)
        found.append((ROLES[role], said))
    return found


def _in_pieces(said: Any) -> Any:
    """What a turn says in pieces of text, ``[{"type": "text", "text": "…"}]``, as one text; anything else as it is."""
    if not isinstance(said, list | tuple | np.ndarray) or not len(said):
        return said
    texts = [piece.get("text") for piece in said if isinstance(piece, Mapping) and piece.get("type", "text") == "text"]
    words = [text for text in texts if isinstance(text, str)]
    return "\n".join(words) if len(words) == len(said) else said
