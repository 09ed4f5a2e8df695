"""Translations: aligned sentences in several languages, and rows that say which two languages they are in.

A row of aligned sentences, as columns or as an object by language, can be read in many directions. Where directions are asked
for, its training rows take turns: each goes to one of them, so that no two clients have the same sentence, and what one is to
write is not what another reads. Test and validation rows are read in every direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.data.languages import table
from weft.data.spelling import spelled
from weft.errors import UserError, nearest
from weft.words import count

Direction = tuple[str, str]
"""The language of what is read, and that of what is to be written."""

LANGUAGES = tuple(table())
"""What a column of sentences in one language is called."""
SOURCES = ("source_language", "source_lang", "src_language", "src_lang")
TARGETS = ("target_language", "target_lang", "tgt_language", "tgt_lang")


def directions(where: str, pairs: str, have: Sequence[str]) -> tuple[Direction, ...]:
    """What was asked for, as ``en-de,de-en``, of sentences in these languages.

    Raises:
        UserError: something is no pair of two of them.
    """
    found = [_direction(where, one.strip(), have) for one in pairs.split(",") if one.strip()]
    return tuple(dict.fromkeys(found))


def _direction(where: str, pair: str, have: Sequence[str]) -> Direction:
    words = pair.split("-")
    cuts = [("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
    if not cuts or not all(words):
        raise UserError(f'"{pair}" is no pair of languages: write it as en-de, from the one to the other.')
    called = {name.lower(): name for name in reversed(have)}
    for source, target in cuts:
        if source.lower() in called and target.lower() in called:
            if source.lower() == target.lower():
                raise UserError(f'the pair "{pair}" translates a language into itself: name two.')
            return called[source.lower()], called[target.lower()]
    source, target = next((cut for cut in cuts if called.keys() & {name.lower() for name in cut}), cuts[0])
    lacking = source if source.lower() not in called else target
    raise UserError(
        f'{where} has no sentences in "{lacking}", which the pair {pair} asks for: it has {", ".join(have)}.'
        f"{nearest(lacking, have)}"
    )


def of_rows(where: str, pairs: str, spoken: Sequence[Direction]) -> tuple[Direction, ...]:
    """The same of training rows that say their languages themselves.

    Raises:
        UserError: no row is of a pair.
    """
    have = dict.fromkeys(spoken)
    asked = directions(where, pairs, list(dict.fromkeys(name for pair in have for name in pair)))
    for source, target in asked:
        if (source, target) not in have:
            there = [joined(pair) for pair in have]
            raise UserError(
                f"{where} has no training rows of the pair {source}-{target}: it has {', '.join(there[:20])}."
                f"{nearest(f'{source}-{target}', there)}"
            )
    return asked


def joined(pair: Direction) -> str:
    """What a pair is called: ``en-de``."""
    return "-".join(pair)


def told(columns: Mapping[str, Sequence[Any]], which: Direction, i: int, at: str) -> Direction:
    """The languages that a row says.

    Args:
        which: the columns that tell them. at: what a sentence calls the row.

    Raises:
        UserError: it lacks one.
    """
    source, target = (spelled(columns[name][i]) if name in columns else None for name in which)
    if source is None or target is None:
        lacking = which[0] if source is None else which[1]
        raise UserError(f'{at} has no language in column "{lacking}": give every row both, or leave the columns out.')
    return source, target


def columns_of(names: Sequence[str]) -> Direction | None:
    """The columns that tell the languages of rows, if there are both."""
    lower = {name.lower(): name for name in reversed(names)}
    source, target = (next((lower[name] for name in some if name in lower), None) for some in (SOURCES, TARGETS))
    return None if source is None or target is None else (source, target)


def common(languages: Sequence[Direction]) -> dict[str, str]:
    """Facts about a client with rows of these languages: its ``source`` and its ``target``, where all rows have one."""
    each = {"source": {source for source, _ in languages}, "target": {target for _, target in languages}}
    return {name: next(iter(some)) for name, some in each.items() if len(some) == 1}


def in_turns(where: str, rows: int, pairs: Sequence[Direction]) -> list[str]:
    """A note on how aligned rows are shared out."""
    if len(pairs) < 2:
        return []
    return [f"{where}: {count(rows, 'training row')} take turns among {len(pairs)} directions, each in one of them."]
