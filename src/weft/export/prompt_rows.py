"""What a language model is asked: texts, instructions with an input, or chats, as rows without answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from weft.data.rows import Rows, Turns
from weft.errors import UserError

Turn: TypeAlias = tuple[str, str] | Mapping[str, str]
Prompt: TypeAlias = str | tuple[str, str] | Sequence[Turn]
ROLES = ("system", "user", "assistant")


def rows_asked(prompts: Sequence[Prompt]) -> Rows:
    """Prompts as rows whose answers are empty.

    Args:
        prompts: texts, pairs of an instruction and its input, or chats: turns (role, text), the last of them of the ``user``.

    Raises:
        UserError: something else.
    """
    if isinstance(prompts, str):
        raise UserError("give a list of prompts, even for a single one: generate([prompt]).")
    read = [_read(prompt, i) for i, prompt in enumerate(prompts)]
    return Rows(
        texts=[text for text, _, _ in read],
        pairs=[given for _, given, _ in read] if any(given for _, given, _ in read) else None,
        history=[turns for _, _, turns in read] if any(turns for _, _, turns in read) else None,
        answers=[""] * len(read),
    )


def _read(prompt: Any, i: int) -> tuple[str, str, Turns]:
    """Text, input and earlier turns."""
    if isinstance(prompt, str):
        return prompt, "", ()
    if isinstance(prompt, list | tuple) and prompt:
        if len(prompt) == 2 and all(isinstance(part, str) for part in prompt):
            return prompt[0], prompt[1], ()
        turns = tuple(_turn(turn) for turn in prompt)
        if all(turns):
            if turns[-1][0] != "user":
                raise UserError(f"prompt {i} is a chat that does not end with a turn of the user: nobody has asked anything.")
            return turns[-1][1], "", turns[:-1]
    raise UserError(
        f"prompt {i} is neither a text, nor a pair of an instruction and its input, nor a chat of turns (role, text) with a role "
        f"of {', '.join(ROLES)}."
    )


def _turn(turn: Any) -> Any:
    """(role, text), None for anything else; a mapping has them as ``role`` and ``content``."""
    found = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else turn
    well = isinstance(found, list | tuple) and len(found) == 2 and found[0] in ROLES and isinstance(found[1], str)
    return tuple(found) if well else None
