"""From columns to examples: which column is the text or the picture, which the label, and what the classes are called.

Hub sets and local files meet here: both arrive as one table of columns for each split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.data import pictures
from weft.data.images import Images
from weft.data.rows import Rows, Source
from weft.errors import UserError, nearest

Table = dict[str, list[Any]]  # column name -> one value for each row
SPLITS = ("train", "test", "validation")

PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXTS = (
    "text", "sentence", "content", "review", "review_text", "comment", "comment_text", "tweet",
    "utterance", "document", "article", "message", "body", "question", "query", "description",
    "abstract", "headline", "title", "input",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "relation",
    "emotion", "gold_label", "fine_label", "coarse_label", "news_category", "label_name", "label_text", "y",
)  # fmt: skip
KEYS = (
    "client", "client_id", "user", "user_id", "domain", "lang", "language", "speaker", "author", "site",
    "hospital", "genre", "group", "source", "style",
)  # fmt: skip
MOST_CLASSES = 1000  # more different values than this in a guessed label column: it is hardly a label


@dataclass(frozen=True)
class Columns:
    """The columns in use, text or image, and for each guessed one a sentence in ``notes``."""

    text: str | None
    label: str
    pair: str | None = None
    image: str | None = None
    names: str | None = None  # a companion of the label that holds the name of the class
    key: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """What an example is: ``text`` or ``picture``."""
        return "picture" if self.text is None else "text"


def choose(
    table: Mapping[str, Sequence[Any]],
    where: str,
    *,
    image: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    key: str | None = None,
) -> Columns:
    """Pick the columns of ``table``: those named, and a guess for the rest.

    A set with a column of pictures, as :func:`weft.data.pictures.resolved` leaves them, is one of pictures unless a text is
    named. ``where`` is what sentences call the set. Raises UserError where a named column is absent, or where no text or label
    column can be told.
    """
    present = list(table)
    listed = ", ".join(present)
    for flag, column in (("--image", image), ("--text", text), ("--pair", pair), ("--label", label), ("--key", key)):
        if column is not None and column not in table:
            raise UserError(
                f'{where} has no column "{column}", asked for by {flag}; its columns are {listed}.{nearest(column, present)}'
            )
    lower = {name.lower(): name for name in reversed(present)}
    if image is not None and (text is not None or pair is not None):
        raise UserError(f"{where} is read as pictures or as texts: name a column with --image or with --text, not both.")
    if image is not None and image not in pictures.columns(table, image):
        raise UserError(f'column "{image}" of {where} holds no pictures: name another with --image, or the text with --text.')
    given = {name for name in (image, text, pair, label, key) if name}
    notes = []

    def guess(candidates: Iterable[str]) -> str | None:
        return next((lower[c] for c in candidates if c in lower and lower[c] not in given), None)

    if label is None:
        label = guess(LABELS)
        if label is None:
            raise UserError(f"{where} has no column that looks like a label; its columns are {listed}: name it with --label.")
        given.add(label)
        notes.append(f'"{label}" is the label (--label)')
    if image is None and text is None and pair is None:
        image = next((name for name in pictures.columns(table) if name not in given), None)
        if image is not None:
            notes.append(f'"{image}" is the picture (--image)')
    if image is None and text is None and pair is None and "text" not in lower:
        both = next(
            (p for p in PAIRS if p[0] in lower and p[1] in lower and not {lower[p[0]], lower[p[1]]} & given),
            None,
        )
        if both:
            text, pair = lower[both[0]], lower[both[1]]
            notes.append(f'"{text}" and "{pair}" are the two texts (--text, --pair)')
    if image is None and text is None:
        strings = [c for c in present if c not in given and any(isinstance(v, str) and " " in v for v in table[c][:100])]
        text = guess(TEXTS) or (strings[0] if len(strings) == 1 else None)
        if text is None:
            raise UserError(
                f"{where} has no column that looks like its text; its columns are {listed}: name it with --text (or, if it holds "
                "pictures, with --image)."
            )
        notes.append(f'"{text}" is the text (--text)')
    given.update(column for column in (image, text) if column is not None)
    names = guess([f"{label}_name".lower(), f"{label}_text".lower(), "label_name", "label_text", "class_name"])
    if key is None:
        key = guess(KEYS)
        if key is not None:
            different = len({str(value) for value in table[key]})
            if 2 <= different <= max(2, len(table[key]) // 2):
                notes.append(f'"{key}" is the natural client ({different} of them; --key)')
            else:
                key = None
    sentence = (f"{where}: guessed that {', '.join(notes)}.",) if notes else ()
    return Columns(text=text, label=label, pair=pair, image=image, names=names, key=key, notes=sentence)


def build(
    name: str,
    splits: Mapping[str, Table],
    columns: Columns,
    *,
    label_names: Mapping[Any, str] | None = None,
    notes: Iterable[str] = (),
) -> Source:
    """The source made of ``splits`` (keys out of SPLITS, with "train"), but for its fingerprint.

    Classes are those of ``label_names`` in its order (rows with another label are dropped and counted), else
    the sorted values of the label column, called by the companion column where there is one. Rows without
    text (or picture) or label are dropped and counted. A split without any label, as test sets of competitions are, is set
    aside; the validation split then becomes the test set. Ids number the rows of train, test and validation
    in this order, dropped rows included.
    """
    said = [*notes, *columns.notes]
    labels = _labels(name, splits, columns.label)
    kept: dict[str, np.ndarray] = {}
    for split in splits:
        usable = _usable(splits[split], labels[split], columns, label_names)
        if usable is None:
            said.append(f"{name}: the {split} split has no labels and is not used.")
            continue
        kept[split] = np.flatnonzero(usable)
        if dropped := len(usable) - len(kept[split]):
            said.append(f"{name}: dropped {dropped} of {len(usable)} {split} rows without a {columns.content} or a label in use.")
    if not len(kept.get("train", ())):
        flag = "image" if columns.text is None else "text"
        raise UserError(f"{name} has no training rows with {columns.content} and label: check --{flag} and --label.")
    values = {split: [labels[split][i] for i in index.tolist()] for split, index in kept.items()}
    order = list(label_names or sorted({value for column in values.values() for value in column}))
    if label_names is None:
        called = _names(splits, labels, kept, columns, order)
        _check_number(name, columns.label, len(order), len(values["train"]))
    else:
        called = [label_names[value] for value in order]

    index_of = {value: i for i, value in enumerate(order)}
    tables: dict[str, Rows] = {}
    first = 0
    for split in SPLITS:
        if split in kept:
            index = [index_of[value] for value in values[split]]
            tables[split] = _rows(splits[split], kept[split], columns, index, first)
        first += len(labels.get(split, ()))
    if "test" not in tables and "validation" in tables:
        tables["test"] = tables.pop("validation")
        said.append(f"{name}: has no labelled test split; its validation split is the test set.")
    trained = set(values["train"])
    only = sorted({called[index_of[v]] for column in values.values() for v in column if v not in trained})
    if only:
        said.append(f"{name}: never seen in training, only in other splits: {', '.join(only)}.")
    said += _new_keys(name, columns.key, tables["train"].keys, getattr(tables.get("test"), "keys", None))
    return Source(
        name=name,
        classes=tuple(called),
        train=tables["train"],
        test=tables.get("test"),
        validation=tables.get("validation"),
        key_name=columns.key,
        label_name=columns.label,
        notes=tuple(said),
    )


def _labels(name: str, splits: Mapping[str, Table], column: str) -> dict[str, list[Any]]:
    """The labels of each split, None for each where the column is absent, as it is from some test splits."""
    found = {}
    for split, table in splits.items():
        absent = [None] * len(next(iter(table.values()), []))
        found[split] = [_label(value, name, column) for value in table.get(column, absent)]
    return _whole_numbers(found)


def _usable(table: Table, labels: list[Any], columns: Columns, label_names: Mapping[Any, str] | None) -> np.ndarray | None:
    """Which rows have text (or picture) and a label in use (bool [n]), or None where the split's labels are hidden."""
    known = [value is not None and (label_names is None or value in label_names) for value in labels]
    if not any(known) or all(isinstance(value, int) and value < 0 for value in labels):
        return None
    absent = [None] * len(labels)
    if columns.image is not None:
        shown = [image is not None for image in table.get(columns.image, absent)]
        return np.logical_and(known, shown)
    texts = table.get(columns.text or "", absent)
    seconds = texts if columns.pair is None else table.get(columns.pair, absent)
    readable = [
        isinstance(text, str) and text.strip() != "" and isinstance(second, str)
        for text, second in zip(texts, seconds, strict=True)
    ]
    return np.logical_and(known, readable)


def _check_number(name: str, column: str, classes: int, rows: int) -> None:
    if classes > 20 and classes > min(MOST_CLASSES, rows // 2):
        raise UserError(
            f'column "{column}" of {name} has {classes} different values, too many for a label: name another column with --label.'
        )


def _new_keys(name: str, key: str | None, train: Sequence[str] | None, test: Sequence[str] | None) -> list[str]:
    new = sorted(set(test or ()) - set(train or ()))
    some = ", ".join(new[:5]) + (" …" if len(new) > 5 else "")
    return [f"{name}: {len(new)} values of {key} occur only in the test split: {some}."] if new else []


def _rows(table: Table, index: np.ndarray, columns: Columns, labels: list[int], first: int) -> Rows:
    def column(name: str | None) -> list[str] | None:
        return [str(table[name][i]) for i in index.tolist()] if name is not None and name in table else None

    pictured = [] if columns.image is None else table[columns.image]
    return Rows(
        texts=column(columns.text) or [] if columns.image is None else None,
        images=None if columns.image is None else Images([pictured[i] for i in index.tolist()]),
        pairs=column(columns.pair),
        labels=np.array(labels, dtype=np.int64),
        ids=index + first,
        keys=column(columns.key),
    )


def _label(value: Any, name: str, column: str) -> Any:
    """One label as an int or a non-empty str, or None where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float):
        if value != value:
            return None
        if not value.is_integer():
            raise UserError(
                f'column "{column}" of {name} holds numbers such as {value:g}: classification needs classes; '
                f"name another column with --label."
            )
        return int(value)
    if value is None or isinstance(value, int):
        return value
    raise UserError(f'column "{column}" of {name} holds {type(value).__name__} values, not one class a row; see --label.')


def _whole_numbers(labels: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Labels of one kind: written numbers ("0" in a csv) become numbers if all are, else all become text."""
    values = {v for column in labels.values() for v in column if v is not None}
    if all(isinstance(v, int) for v in values):
        return labels
    try:
        number = {v: int(v) for v in values}
    except ValueError:
        return {split: [v if v is None else str(v) for v in column] for split, column in labels.items()}
    return {split: [v if v is None else number[v] for v in column] for split, column in labels.items()}


def _names(
    splits: Mapping[str, Table],
    labels: dict[str, list[Any]],
    kept: dict[str, np.ndarray],
    columns: Columns,
    order: list[Any],
) -> list[str]:
    """What the classes are called: by the companion column where it gives each label one name of its own."""
    names: dict[Any, set[str]] = {value: set() for value in order}
    for split, index in kept.items():
        companion = splits[split].get(columns.names or "", None)
        if companion is not None:
            for i in index.tolist():
                names[labels[split][i]].add(str(companion[i]))
    unique = {next(iter(found)) for found in names.values() if len(found) == 1}
    return [next(iter(names[v])) for v in order] if len(unique) == len(order) else [str(v) for v in order]
