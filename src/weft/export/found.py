"""Sentences to find entities in, and where they were found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from weft.data.bio import spans
from weft.errors import UserError

WORD = re.compile(r"\w+|[^\w\s]")
Sentence: TypeAlias = str | Sequence[str]


@dataclass(frozen=True)
class Entity:
    """An entity in a sentence.

    Attributes:
        text: as it stands there. type: of the entity.
        start, end: of a text, its characters from ``start`` to before ``end``; of a list of words, its words.
    """

    text: str
    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Words:
    """A sentence word by word.

    Attributes:
        text: that the words were cut from; None where they were given. places: start and end of each word in it.
    """

    words: tuple[str, ...]
    text: str | None = None
    places: tuple[tuple[int, int], ...] = ()

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        """The entities that tags [len(words)] make up."""
        found = []
        for kind, first, beyond in spans(tags):
            if self.text is None:
                found.append(Entity(" ".join(self.words[first:beyond]), kind, first, beyond))
            else:
                start, end = self.places[first][0], self.places[beyond - 1][1]
                found.append(Entity(self.text[start:end], kind, start, end))
        return found


def sentence(given: Any) -> Words:
    """A text, cut into words and signs of punctuation, or a list of words.

    Raises:
        UserError: something else.
    """
    if isinstance(given, str):
        cut = list(WORD.finditer(given))
        return Words(tuple(m[0] for m in cut), given, tuple(m.span() for m in cut))
    if isinstance(given, list | tuple) and all(isinstance(word, str) for word in given):
        return Words(tuple(given))
    raise UserError(f"entities are found in texts or lists of words, not in a {type(given).__name__}.")
