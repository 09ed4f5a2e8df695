"""Rows to generate from: from chats, translations, columns of prompts and answers, and running text to a source.

A chat is one row: the assistant's last turn is the answer, the user's turn before it is the text, all turns before are history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.checks import dialogue_rows as checks
from weft.checks import table_files
from weft.data import preferred, translations
from weft.data.asked_columns import Asked
from weft.data.columns import SPLITS, Table, with_test
from weft.data.natural_keys import of_keys
from weft.data.rows import Rows, Source, Turns
from weft.data.spelling import spelled
from weft.data.translations import Direction
from weft.data.turns import languages, last_answer, text
from weft.errors import UserError, printable

Read = tuple[Turns, str, str, str, str]  # history, text, pair, answer, rejected answer
PAIR = "language pair"
"""What the natural client of translations is called."""


def build(name: str, splits: Mapping[str, Table], asked: Asked, *, notes: Iterable[str] = ()) -> Source:
    """The source of rows with answers, or with two answers to compare, but for its fingerprint.

    Its one class is called like the column of the answers.

    Rows without an answer, or without anything that it answers, are dropped and counted; a split without any answer is set aside.
    Ids number the rows of train, test and validation, dropped rows included.

    Args:
        splits: keys out of SPLITS, with "train".

    Raises:
        UserError: a chat out of order, a value that is no text, a split that lacks a column, no training rows with an answer.
    """
    said = [*notes, *asked.notes]
    if asked.translations and not asked.directions:
        found = dict.fromkeys(tuple(languages(value)[:2]) for value in splits["train"][asked.answer])
        said += checks.directions(name, [(pair[0], pair[1]) for pair in found if len(pair) == 2])
    said += translations.in_turns(name, len(next(iter(splits["train"].values()), [])), asked.directions)
    read: dict[str, dict[int, Read]] = {}
    spoken: dict[str, dict[int, Direction]] = {}
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        absent = [column for column in asked.used if column not in table]
        if absent or (asked.answer not in table and not table.keys() <= splits["train"].keys()):
            raise UserError(
                f'the {split} rows of {name} have no column "{(*absent, asked.answer)[0]}", which its train rows have.'
            )
        n = len(next(iter(table.values()), []))
        own, spoken[split], looked = _read_split(table, n, asked, split, f"the {split} rows of {name}")
        if not own and split != "train":
            said += table_files.hidden(name, split)
            continue
        said += (checks.dropped if asked.rejected is None else checks.unpaired)(name, split, looked, len(own))
        read[split] = own
    if not read["train"]:
        if asked.rejected is not None:
            raise UserError(
                f'{name} has no training rows with two different answers to one prompt in columns "{asked.answer}" and '
                f'"{asked.rejected}": check --text and --label.'
            )
        raise UserError(f'{name} has no training rows with an answer in column "{asked.answer}": check --text and --label.')
    parts = _parts(splits, read, spoken, asked)
    key_name = asked.key
    if asked.key is None and len(set(parts["train"].languages or ())) > 1:
        key_name = PAIR
        parts = {s: replace(rows, keys=[translations.joined(pair) for pair in rows.languages or ()]) for s, rows in parts.items()}
    said += with_test(name, parts, "test split with answers")
    said += of_keys(name, key_name, parts["train"], parts.get("test"))
    return Source(
        name=name,
        classes=(asked.answer,),
        train=parts["train"],
        test=parts.get("test"),
        validation=parts.get("validation"),
        key_name=key_name,
        label_name=asked.answer,
        notes=tuple(map(printable, said)),
    )


def _read_split(table: Table, n: int, asked: Asked, split: str, where: str) -> tuple[dict[int, Read], dict[int, Direction], int]:
    """The rows of a split of n by their number, their languages where they are known, and how many were looked at."""
    own: dict[int, Read] = {}
    spoken: dict[int, Direction] = {}
    looked = 0
    for number, i, direction in _places(n, asked.directions, split):
        at = f"row {i} of {where}"
        pair = direction if asked.languages is None else translations.told(table, asked.languages, i, at)
        if asked.only and pair not in asked.only:
            continue
        looked += 1
        row = _row(table, i, asked, at, direction) if asked.rejected is None else preferred.row(table, i, asked, at)
        if row is None:
            continue
        own[number] = row
        if pair is None and asked.translations:
            pair = tuple(languages(table[asked.answer][i])[:2])  # type: ignore[assignment]
        if pair is not None:
            spoken[number] = pair
    return own, spoken, looked


def _places(n: int, directions: Sequence[Direction], split: str) -> Iterator[tuple[int, int, Direction | None]]:
    """Numbers of rows, where each is in the table, and in which direction it is read: see :mod:`weft.data.translations`."""
    for i in range(n):
        if split == "train" or not directions:
            yield i, i, directions[i % len(directions)] if directions else None
        else:
            for j, direction in enumerate(directions):
                yield i * len(directions) + j, i, direction


def _row(table: Table, i: int, asked: Asked, at: str, direction: Direction | None) -> Read | None:
    """One row, None where it lacks an answer, or whatever is answered."""

    def cell(column: str | None, option: str) -> str:
        return "" if column is None else text(table[column][i], at, column, option, answers=option == "--label")

    value: Any = table[asked.answer][i] if asked.answer in table else None
    history: Turns = ()
    pair = ""
    if asked.chats:
        history, prompt, answer = last_answer(value, at) or ((), "", "")
    elif asked.translations:
        own = value if isinstance(value, Mapping) else {}
        first, second = (*(direction or languages(own)), "", "")[:2]
        prompt, answer = (text(own.get(language), at, asked.answer, "--label") for language in (first, second))
    elif direction is not None:
        prompt, answer = (text(table[column][i], at, column, "--pairs") for column in direction)
    else:
        answer = cell(asked.answer if asked.answer in table else None, "--label")
        prompt, pair = cell(asked.text, "--text"), cell(asked.pair, "--pair")
    running = asked.text is None and not asked.chats and not asked.translations
    if not answer.strip() or not (running or prompt.strip() or pair.strip()):
        return None
    return history, prompt, pair, answer, ""


def _parts(
    splits: Mapping[str, Table],
    read: Mapping[str, Mapping[int, Read]],
    spoken: Mapping[str, Mapping[int, Direction]],
    asked: Asked,
) -> dict[str, Rows]:
    """The rows of each split. All have inputs and history if a row of any has one, and languages if every row has."""
    every = [row for own in read.values() for row in own.values()]
    chats, inputs = any(row[0] for row in every), any(row[2].strip() for row in every)
    known = all(len(spoken[split]) == len(own) for split, own in read.items())
    parts: dict[str, Rows] = {}
    first = 0
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        times = 1 if split == "train" else max(len(asked.directions), 1)
        if split in read:
            own = read[split]
            keys = None if asked.key is None else table.get(asked.key)
            parts[split] = Rows(
                texts=[row[1] for row in own.values()],
                pairs=[row[2] for row in own.values()] if inputs else None,
                ids=np.array(list(own), dtype=np.int64) + first,
                keys=None if keys is None else [spelled(keys[i // times]) or "" for i in own],
                answers=[row[3] for row in own.values()],
                rejected=None if asked.rejected is None else [row[4] for row in own.values()],
                history=[row[0] for row in own.values()] if chats else None,
                languages=list(spoken[split].values()) if known else None,
            )
        first += times * len(next(iter(table.values()), []))
    return parts
