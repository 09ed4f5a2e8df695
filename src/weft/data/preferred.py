"""Rows of one prompt with two answers, a chosen and a rejected one, from three forms of columns.

``chosen`` and ``rejected`` hold texts, beside a column of the prompt; or chats that differ in their last turn; or transcripts of
such chats, "\\n\\nHuman: …\\n\\nAssistant: …", as those of Anthropic's hh-rlhf.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weft.data.asked_columns import PROMPTS, Asked, for_labels, with_key
from weft.data.columns import NoColumn, Table, Wanted, there
from weft.data.rows import Turns
from weft.data.turns import answered, are_chats, are_texts, every_turn, text
from weft.errors import UserError

CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
BESIDE = ("input", "context")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SPEAKER = re.compile(rf"\n\n({'|'.join(SPEAKERS)}):")
Pair = tuple[Turns, str, str, str, str]
"""History, text, pair, chosen and rejected answer."""


def recognised(where: str, table: Table, asked: Mapping[str, str], wanted: Wanted) -> Asked | None:
    """The columns of a table of preferences; None where it is none, and none is wanted.

    Where classes or any rows are wanted, one with a column ``chosen`` and one ``rejected`` is of preferences, if no column is
    called like a label and none was named as one.

    Args:
        where: what sentences call the set. asked: columns that were named, by option.

    Raises:
        UserError: a column that was named is absent, or preferences are wanted and no columns can be told.
    """
    if wanted in ("answers", "numbers"):
        return None
    if wanted != "preferences" and for_labels(table, asked):
        return None
    if "image" in asked:
        raise UserError(f"{where} is read to compare answers, and such rows have no image: leave --image out.")
    found = _columns(where, table, asked)
    if found is None and wanted == "preferences":
        lower = {name.lower(): name for name in reversed(table)}
        for names in (CHOSEN, REJECTED):
            column = next((lower[name] for name in names if name in lower), None)
            if column is not None and not are_texts(table[column]) and not are_chats(table[column]):
                raise NoColumn(f'{where}: column "{column}" holds neither texts nor chats', "an answer is one of them")
        raise NoColumn(
            f'{where} has no columns "chosen" and "rejected" with the better and the worse answer to one prompt; its columns are '
            f"{', '.join(table)}",
            "rename them, and name the prompt with --text",
        )
    return None if found is None else with_key(found, where, table, asked.get("key"))


def _columns(where: str, table: Table, asked: Mapping[str, str]) -> Asked | None:
    named = {option: there(table, where, option, column) for option, column in asked.items() if option != "key"}
    lower = {name.lower(): name for name in reversed(table)}

    def called(names: Sequence[str]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    chosen, rejected = named.get("label", called(CHOSEN)), called(REJECTED)
    if chosen is None or rejected is None or chosen == rejected:
        return None
    prompt = named.get("text", called(PROMPTS))
    if prompt in (chosen, rejected):
        raise UserError(f'two of --text, --label and the rejected answer are column "{prompt}" of {where}: name another prompt.')
    both = table[chosen], table[rejected]
    if all(map(are_chats, both)):
        found = Asked(chosen, prompt, chats=True, rejected=rejected)
    elif not all(map(are_texts, both)) or (prompt is None and not all(map(are_transcripts, both))):
        return None
    else:
        beside = called(BESIDE)
        pair = named.get("pair", beside if beside is not None and are_texts(table[beside]) else None)
        found = Asked(chosen, prompt, None if prompt is None else pair, rejected=rejected)
    parts = (("text", found.text, "is asked"), ("pair", found.pair, "its input"), ("label", chosen, "the preferred answer"))
    guessed = [f'"{column}" {what} (--{option})' for option, column, what in parts if column is not None and option not in named]
    note = f'{where}: guessed that {", ".join(guessed)}, and "{rejected}" the other one.'
    return replace(found, notes=(note,) if guessed else ())


def are_transcripts(column: Sequence[Any]) -> bool:
    """Whether most texts of a column start with a turn of one of the two speakers."""
    some = [value for value in column[:100] if isinstance(value, str)]
    return 2 * sum(SPEAKER.match("\n\n" + value.lstrip()) is not None for value in some) > len(some)


def row(table: Table, i: int, asked: Asked, at: str) -> Pair | None:
    """One row; None where it lacks an answer or whatever is answered, or its answers are alike, or follow different turns.

    Args:
        at: what a sentence calls the row.

    Raises:
        UserError: a value is no text and no chat.
    """
    assert asked.rejected is not None
    columns = asked.answer, asked.rejected
    if any(column not in table for column in columns):
        return None
    if asked.chats:
        before = _before(table[asked.text][i], at) if asked.text is not None else []
        said = [every_turn(table[column][i], at) for column in columns]
        if not all(said):
            return None
        # the prompt is in both, or stands beside them
        one, other = (answered([*before, *own] if own[0][0] == "assistant" else own, at) for own in said)
    elif asked.text is None:
        one, other = (_transcript(text(table[column][i], at, column, "--label")) for column in columns)
    else:
        prompt, pair = (text(table[c][i], at, c, "--text") if c else "" for c in (asked.text, asked.pair))
        one, other = (((), prompt, text(table[column][i], at, column, "--label")) for column in columns)
        return _pair(one, other, pair)
    return _pair(one, other, "")


def _pair(one: tuple[Turns, str, str] | None, other: tuple[Turns, str, str] | None, pair: str) -> Pair | None:
    if one is None or other is None or one[:2] != other[:2] or not (one[1].strip() or pair.strip()):
        return None
    chosen, rejected = one[2], other[2]
    if not chosen.strip() or not rejected.strip() or chosen.strip() == rejected.strip():
        return None
    return one[0], one[1], pair, chosen, rejected


def _before(prompt: Any, at: str) -> list[tuple[str, str]]:
    """The turns of a prompt, which may be a text."""
    return [("user", prompt)] if isinstance(prompt, str) else every_turn(prompt, at)


def _transcript(said: str) -> tuple[Turns, str, str] | None:
    """The turns of a transcript as those of a chat; None where they don't go from the human to the assistant.

    What one speaker says in two turns is one.
    """
    start, *pieces = SPEAKER.split("\n\n" + said.lstrip())
    turns: list[tuple[str, str]] = []
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role, words = SPEAKERS[speaker], words.strip()
        if turns and turns[-1][0] == role:
            role, words = role, f"{turns.pop()[1]}\n\n{words}".strip()
        turns.append((role, words))
    if start.strip() or len(turns) < 2 or turns[0][0] != "user" or turns[-1][0] != "assistant":
        return None
    return tuple(turns[:-2]), turns[-2][1], turns[-1][1]
