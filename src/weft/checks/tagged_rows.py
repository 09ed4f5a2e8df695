"""Tagged sentences that were read, compared with what can be learnt from: plain data in, sentences for a person out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weft.errors import UserError

FEW = 10  # entities of a type: fewer can hardly be learnt


def lists(where: str, split: str, row: int, sentence: Any, tags: Any) -> None:
    """Raises:
    UserError: a row has something else than a list of words and one of tags.
    """
    for value, of in ((sentence, "words"), (tags, "tags")):
        if not isinstance(value, list | tuple | np.ndarray):
            raise UserError(
                f"row {row} of the {split} rows of {where} holds {value!r:.40} instead of a list of {of}: give each row a list."
            )


def as_many(where: str, split: str, row: int, words: int, tags: int) -> None:
    """Raises:
    UserError: a sentence has more words than tags, or fewer.
    """
    if words != tags:
        raise UserError(f"row {row} of the {split} rows of {where} has {words} words and {tags} tags: give each word one tag.")


def words(where: str, split: str, row: int, sentence: Sequence[Any]) -> None:
    """Raises:
    UserError: a word is none.
    """
    for word in sentence:
        if not isinstance(word, str):
            raise UserError(
                f"row {row} of the {split} rows of {where} holds {word!r:.40} instead of a word: write words as text."
            )


def dropped(where: str, split: str, rows: int, kept: int) -> list[str]:
    """A note on sentences without words or tags."""
    if rows == kept:
        return []
    return [f"{where}: {rows - kept} of {rows} {split} rows have no words or no tags and are left out."]


def spread(where: str, entities: Mapping[str, int]) -> list[str]:
    """A note on types of entities that are too few to be learnt."""
    few = sorted(kind for kind, n in entities.items() if n < FEW)
    return [f"{where}: fewer than {FEW} entities of {', '.join(few)}."] if few else []


def spaces(where: str, key: str | None, types: Mapping[str, set[str]]) -> list[str]:
    """A note on natural clients whose training rows lack types of entities that others have.

    Args:
        key: what the natural key is called. types: of entities, by key; "" stands for O.
    """
    every = set().union(*types.values())
    lacking = {who: sorted(every - own) for who, own in types.items() if every - own}
    if not lacking:
        return []
    who, lacks = next(iter(lacking.items()))
    some = ", ".join(lacks[:3]) + (" …" if len(lacks) > 3 else "")
    return [
        f"{where}: {len(lacking)} of {len(types)} values of {key} lack types of entities in their training rows, so that "
        f'their rows are trained and scored without these unless label_spaces = "all" ("{who}" lacks {some}).'
    ]


def places(words: int, cut: int, unseen: int, length: int) -> list[str]:
    """Notes on words that nothing is predicted for.

    Args:
        words: of all rows. cut: those beyond the longest row. unseen: those that a tokenizer makes nothing of.
        length: of the longest row, in tokens.
    """
    left = "they are neither trained on nor scored"
    found = []
    if cut:
        found.append(f"{cut:,} of {words:,} words lie beyond {length} tokens of their sentence: {left} (--set max_length).")
    if unseen:
        found.append(f"the tokenizer makes nothing of {unseen:,} of {words:,} words: {left}.")
    return found
