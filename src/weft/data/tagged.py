"""Sentences whose words are tagged with entities: from columns of words and tags to a source.

Tags are in the BIO scheme, B-X for the first word of an entity X, I-X for those after it, O for others; the schemes BIOES
and BILOU are brought to it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.checks import tagged_rows as checks
from weft.data.bio import OUTSIDE, spans
from weft.data.columns import SPLITS, Table, there, with_test
from weft.data.natural_keys import KEYS, natural_key
from weft.data.rows import Rows, Source
from weft.data.spelling import spelled
from weft.errors import UserError, printable

WORDS = ("tokens", "words", "token", "sentence", "text")
TAGS = ("tags", "ner_tags", "labels", "ner", "label", "tag")
TAGS_ALONE = ("tags", "ner_tags", "ner")  # what nothing but tags is called
CORPORA = (*KEYS, "dataset", "corpus")
BIO = {"B": "B", "I": "I", "S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}  # prefixes of the schemes, and what they are in BIO


def recognised(table: Table, asked: Mapping[str, str]) -> tuple[str, str] | None:
    """The columns of words and of tags, if those named are lists, or guessed; None where a table has no such pair.

    Args:
        asked: columns that were named, by option; those of words and tags are ``text`` and ``label``.
    """
    words, tags = asked.get("text"), asked.get("label")
    lists = {name: column for name, column in table.items() if _lists(column)}
    lower = {name.lower(): name for name in reversed(lists)}
    of_words = [words] if words is not None else [lower[n] for n in WORDS if n in lower]
    of_tags = [tags] if tags is not None else [lower[n] for n in TAGS if n in lower]
    for one in of_words:
        for other in of_tags:
            if one in lists and other in lists and one != other:
                return one, other
    return None


def _lists(column: Sequence[Any]) -> bool:
    """Whether most rows have a list; of another the sentence about it names the row."""
    there = [isinstance(value, list | tuple | np.ndarray) for value in column[:100] if value is not None]
    return 2 * sum(there) > len(there)


def half(table: Table, where: str, asked: Mapping[str, str]) -> None:
    """Refuse columns that are called like words and tags and are no lists, unless others were named.

    Raises:
        UserError: there are such columns.
    """
    lower = {name.lower(): name for name in reversed(table)}
    words, tags = (next((lower[n] for n in names if n in lower), None) for names in (WORDS[:3], TAGS_ALONE))
    if words is not None and tags is not None and not {"text", "label"} & asked.keys():
        raise UserError(
            f'columns "{words}" and "{tags}" of {where} do not hold a list in each row, as tagged words do: write jsonl, '
            "parquet or a CoNLL file (a csv holds no lists), or name a text and its label with --text and --label."
        )


def build(
    name: str,
    splits: Mapping[str, Table],
    words: str,
    tags: str,
    asked: Mapping[str, str],
    *,
    notes: Iterable[str] = (),
) -> Source:
    """The source of tagged sentences, but for its fingerprint; ids number the rows of train, test and validation.

    Classes are O and the other tags in the order of their types. Where rows have a natural key, the classes that a row may
    have are O and the tags that occur in the training rows of its key: who labelled diseases has not looked for species.

    Args:
        splits: keys out of SPLITS, with "train". words, tags: columns of lists, see :func:`recognised`.
        asked: columns that were named, by option.

    Raises:
        UserError: a sentence with more tags than words, a tag of no known scheme, no training rows, …
    """
    said = list(notes)
    if other := [option for option in ("pair", "image") if option in asked]:
        raise UserError(f"the words of {name} are tagged, and such rows have no {other[0]}: leave --{other[0]} out.")
    key = _key(name, splits["train"], asked.get("key"), said)
    if not {"text", "label"} <= asked.keys():
        said.append(f'{name}: guessed that "{words}" are the words (--text), "{tags}" their tags (--label).')
    read: dict[str, tuple[list[int], list[tuple[str, ...]], list[list[str]]]] = {}
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        if absent := [c for c in (words, tags) if c not in table]:
            raise UserError(f'the {split} rows of {name} have no column "{absent[0]}", which its train rows have.')
        kept, own, theirs = [], [], []
        for i, (sentence, labels) in enumerate(zip(table[words], table[tags], strict=True)):
            if sentence is None or labels is None:
                continue
            checks.lists(name, split, i, sentence, labels)
            if not len(sentence):
                continue
            kept.append(i)
            own.append(_words(sentence, name, split, i))
            theirs.append([_tag(value, f"{name}, row {i} of the {split} rows,", tags) for value in labels])
            checks.as_many(name, split, i, len(sentence), len(labels))
        said += checks.dropped(name, split, len(table[words]), len(kept))
        read[split] = (kept, own, theirs)
    if not read["train"][0]:
        raise UserError(f"{name} has no training sentence with words and tags: check --text and --label.")
    found = {tag for _, _, rows in read.values() for row in rows for tag in row} - {OUTSIDE}
    classes = (OUTSIDE, *sorted(found, key=lambda tag: (tag[2:], tag[0])))
    if len(classes) == 1:
        raise UserError(f'column "{tags}" of {name} holds no entity, O alone: name another with --label.')
    said += checks.spread(name, Counter(kind for _, _, rows in read.values() for row in rows for kind, _, _ in spans(row)))
    trained = {tag[2:] for row in read["train"][2] for tag in row}
    if only := sorted({tag[2:] for tag in found} - trained):
        said.append(f"{name}: never seen in training, only in other splits: {', '.join(only)}.")
    number = {tag: i for i, tag in enumerate(classes)}
    parts: dict[str, Rows] = {}
    first = 0
    for split, (kept, own, theirs) in read.items():
        column = None if key is None else splits[split].get(key)
        parts[split] = rows_of(
            own,
            [np.array([number[tag] for tag in row], dtype=np.int64) for row in theirs],
            np.array(kept, dtype=np.int64) + first,
            None if column is None else [spelled(column[i]) or "" for i in kept],
        )
        first += len(splits[split][words])
    said += with_test(name, parts, "test split")
    spaces = spaces_of(parts["train"], len(classes))
    said += checks.spaces(
        name, key, {who: {tag[2:] for tag, own in zip(classes, space, strict=True) if own} for who, space in spaces.items()}
    )
    return Source(
        name=name,
        classes=classes,
        train=within(parts["train"], spaces),
        test=within(parts["test"], spaces) if "test" in parts else None,
        validation=within(parts["validation"], spaces) if "validation" in parts else None,
        key_name=key,
        label_name=tags,
        notes=tuple(map(printable, said)),
    )


def rows_of(
    words: Sequence[tuple[str, ...]], tags: Sequence[np.ndarray], ids: np.ndarray | None = None, keys: Sequence[str] | None = None
) -> Rows:
    """Rows of tagged sentences. A sentence's label, by which rows are dealt out, is the first tag in it that is not 0 (O)."""
    labels = np.array([next((t for t in row.tolist() if t), 0) for row in tags], dtype=np.int64)
    return Rows([" ".join(row) for row in words], None, labels, ids, keys, words=words, tags=tags)  # type: ignore[arg-type]


def spaces_of(train: Rows, classes: int) -> dict[str, np.ndarray]:
    """Natural key -> the classes [C] bool that its training rows have, and O; without keys all rows have the key ""."""
    found: dict[str, np.ndarray] = {}
    assert train.tags is not None
    for key, tags in zip(train.keys or [""] * len(train), train.tags, strict=True):
        own = found.setdefault(key, np.arange(classes) == 0)
        own[tags] = True
    return found


def within(rows: Rows, spaces: Mapping[str, np.ndarray]) -> Rows:
    """The rows with what each may be, which is what it is too; those of a key that nobody trains on may be anything."""
    anything = np.ones_like(next(iter(spaces.values())))
    allowed = np.array([spaces.get(key, anything) for key in rows.keys or [""] * len(rows)]).reshape(len(rows), len(anything))
    for own, tags in zip(allowed, rows.tags or (), strict=True):
        own[tags] = True
    return replace(rows, allowed=allowed)


def _words(sentence: Any, name: str, split: str, i: int) -> tuple[str, ...]:
    found = tuple(word if isinstance(word, str) else "" for word in sentence)
    checks.words(name, split, i, sentence)
    return found


def _tag(value: Any, where: str, column: str) -> str:
    """One tag in the BIO scheme."""
    if not isinstance(value, str):
        raise UserError(
            f'column "{column}" of {where} holds the tag {value!r:.40}: write tags such as B-Disease, I-Disease and O.'
        )
    tag = unicodedata.normalize("NFC", value.strip())
    prefix, sign, kind = tag.partition("-")
    if tag in ("O", "o", "0"):
        return OUTSIDE
    if prefix not in BIO or not sign or not kind:
        raise UserError(
            f'column "{column}" of {where} holds the tag "{tag}": tags are O, B-X and I-X for an entity X (or those of BIOES).'
        )
    return f"{BIO[prefix]}-{kind}"


def _key(where: str, table: Table, asked: str | None, said: list[str]) -> str | None:
    """The column of the natural client."""
    if asked is not None:
        return there(table, where, "key", asked)
    found = natural_key(table, CORPORA)
    if found is None:
        return None
    key, different = found
    said.append(f'{where}: guessed that "{key}" is the natural client ({different} of them; --key).')
    return key
