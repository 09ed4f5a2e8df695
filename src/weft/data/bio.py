"""Entities as spans of tags: B-X begins one of the type X, I-X goes on with it, O is outside (Ramshaw & Marcus, 1995)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Span = tuple[str, int, int]
"""Type, first word, and the word after the last."""
OUTSIDE = "O"


def spans(tags: Sequence[str]) -> Iterator[Span]:
    """Entities in the tags of one sentence, in their order.

    Tags that break the scheme are read as ``conlleval`` and the default mode of ``seqeval`` read them: an I-X that does not
    follow a tag of the type X begins an entity.
    """
    kind, start = "", 0
    for i, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            yield kind, start, i
            kind = ""
        if prefix != OUTSIDE and not kind:
            kind, start = own, i


def type_of(tag: str) -> str:
    """The type of entity that a tag belongs to; "" of O."""
    return tag.partition("-")[2]
