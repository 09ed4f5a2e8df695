"""From columns to examples: which column is the text or the picture, which the label, and what the classes are called.

Hub sets and local files meet here: both arrive as one table of columns for each split.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weft.checks import table_files as checks
from weft.data import pictures
from weft.data.images import Images
from weft.data.natural_keys import KEYS, natural_key, of_keys
from weft.data.rows import Rows, Source
from weft.data.spelling import column as named
from weft.data.spelling import in_order, number, spelled
from weft.errors import UserError, nearest, printable

Table = dict[str, list[Any]]  # column name -> one value for each row
SPLITS = ("train", "test", "validation")
Wanted = Literal[
    "classes", "numbers", "answers", "preferences", "items", "questions", "any"
]  # what rows are for, see weft.data.load

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
NUMBERS = ("score", "similarity_score", "similarity", "rating", "value")  # what a number to predict may be called
ANSWERS = (
    "output", "response", "answer", "completion", "chosen", "solution", "answers", "summary", "highlights", "target", "targets",
    "tgt",
)  # fmt: skip
MOST_CLASSES = 1000  # more different values than this in a guessed label column: it is hardly a label


def wanted_by(task: str) -> Wanted:
    """What rows are for, of a kind of task."""
    found: dict[str, Wanted] = {
        "regression": "numbers",
        "generation": "answers",
        "masked": "answers",
        "preference": "preferences",
        "next-item": "items",
        "vqa": "questions",
    }
    return found.get(task, "classes")


class NoColumn(UserError):
    """A table has no column that could be the one that is needed.

    Attributes:
        lacking: what it has not, without what to type.
    """

    def __init__(self, lacking: str, advice: str):
        super().__init__(f"{lacking}: {advice}.")
        self.lacking = lacking


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
    wanted: Wanted = "classes",
) -> Columns:
    """Pick the columns of ``table``: those named, and a guess for the rest.

    A set with a column of pictures, as :func:`weft.data.pictures.resolved` leaves them, is one of pictures unless a text is
    named. ``where`` is what sentences call the set; ``wanted``: the label is a class, a number, or any of the two. Raises
    UserError where a named column is absent, NoColumn where no text or label column can be told.
    """
    asked = {"image": image, "text": text, "pair": pair, "label": label, "key": key}
    image, text, pair, label, key = (None if n is None else there(table, where, option, n) for option, n in asked.items())
    present = list(table)
    listed = ", ".join(present)
    lower = {name.lower(): name for name in reversed(present)}
    if image is not None and (text is not None or pair is not None):
        raise UserError(f"{where} is read as pictures or as texts: name a column with --image or with --text, not both.")
    if image is not None and image not in pictures.columns(table, image):
        raise UserError(f'column "{image}" of {where} holds no pictures: name another with --image, or the text with --text.')
    for flag, column in (("--image", image), ("--text", text), ("--pair", pair)):
        if column is not None and column == label:
            raise UserError(f'{flag} and --label both name column "{column}" of {where}: the model would read the answer.')
    given = {name for name in (image, text, pair, label, key) if name}
    notes = []

    def guess(candidates: Iterable[str]) -> str | None:
        return filled(table, [lower[c] for c in candidates if c in lower and lower[c] not in given])

    if label is None:
        label = guess({"numbers": (*NUMBERS, *LABELS), "any": (*LABELS, *NUMBERS)}.get(wanted, LABELS))
        if label is None:
            hint = ", or predict a number with --task regression" if any(name in lower for name in NUMBERS) else ""
            if answer := next((lower[name] for name in ANSWERS if name in lower), None):
                hint += f', or generate "{answer}" with --task generation'
            raise NoColumn(
                f"{where} has no column that looks like a label; its columns are {listed}", f"name it with --label{hint}"
            )
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
            raise NoColumn(
                f"{where} has no column that looks like its text; its columns are {listed}",
                "name it with --text (or, if it holds pictures, with --image)",
            )
        notes.append(f'"{text}" is the text (--text)')
    given.update(column for column in (image, text) if column is not None)
    names = guess([f"{label}_name".lower(), f"{label}_text".lower(), "label_name", "label_text", "class_name"])
    if key is None:
        found = natural_key({name: column for name, column in table.items() if name not in given}, KEYS)
        if found is not None:
            key, different = found
            notes.append(f'"{key}" is the natural client ({different} of them; --key)')
    sentence = (f"{where}: guessed that {', '.join(notes)}.",) if notes else ()
    return Columns(text=text, label=label, pair=pair, image=image, names=names, key=key, notes=sentence)


def filled(table: Mapping[str, Sequence[Any]], names: Sequence[str]) -> str | None:
    """The first of these columns that has something in half of the rows or more, else the one that has it in most."""

    def rows(name: str) -> int:
        return sum(not (value is None or (isinstance(value, str | list | tuple | dict) and not value)) for value in table[name])

    return next((name for name in names if 2 * rows(name) >= len(table[name])), max(names, key=rows, default=None))


def there(table: Mapping[str, Any], where: str, option: str, asked: str) -> str:
    """The column that was named with ``--option``, as the table spells it.

    Raises:
        UserError: there is none.
    """
    column = asked if asked in table else named(asked)
    if column not in table:
        listed = ", ".join(table)
        raise UserError(
            f'{where} has no column "{column}", asked for by --{option}; its columns are {listed}.{nearest(column, table)}'
        )
    return column


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
    the sorted values of the label column, called by the companion column where there is one. Classes and keys have one spelling,
    see :mod:`weft.data.spelling`; a row without a key has the key "". Rows without
    text (or picture) or label are dropped and counted. A split without any label, as test sets of competitions are, is set
    aside; the validation split then becomes the test set. Ids number the rows of train, test and validation
    in this order, dropped rows included.
    """
    said = [*notes, *columns.notes]
    codes = None if label_names is None else _codes(label_names)
    labels, spellings = _labels(name, splits, columns.label, codes)
    known = None if codes is None else dict.fromkeys(codes.values())
    kept: dict[str, np.ndarray] = {}
    for split in splits:
        found = usable(splits[split], labels[split], columns, known)
        if found is None or (split != "train" and _all_hidden(labels[split], labels["train"])):
            said += checks.hidden(name, split)
            continue
        kept[split] = np.flatnonzero(found)
        said += checks.dropped(name, split, len(found), len(kept[split]), columns.content)
    if not len(kept.get("train", ())):
        flag = "image" if columns.text is None else "text"
        raise UserError(f"{name} has no training rows with {columns.content} and label: check --{flag} and --label.")
    values = {split: [labels[split][i] for i in index.tolist()] for split, index in kept.items()}
    rows = Counter(value for column in values.values() for value in column)
    order = list(known or in_order(rows))
    if known is None:
        called = _names(splits, labels, kept, columns, order)
        _check_number(name, columns.label, len(order), len(values["train"]))
        numbers, words = ({v: n for v, n in rows.items() if (number(v) is None) == apart} for apart in (False, True))
        said += checks.kinds(name, columns.label, numbers, words)
        said += checks.respelled(name, columns.label, {v: found for v, found in spellings.items() if v in rows})
    else:
        called = order
    said += checks.look_alike(name, {called[i]: rows[value] for i, value in enumerate(order)})

    index_of = {value: i for i, value in enumerate(order)}
    tables: dict[str, Rows] = {}
    first = 0
    for split in SPLITS:
        if split in kept:
            index = [index_of[value] for value in values[split]]
            tables[split] = rows_of(splits[split], kept[split], columns, index, first)
        first += len(labels.get(split, ()))
    said += with_test(name, tables, "labelled test split")
    trained = set(values["train"])
    only = sorted({called[index_of[v]] for column in values.values() for v in column if v not in trained})
    if only:
        said.append(f"{name}: never seen in training, only in other splits: {', '.join(only)}.")
    said += of_keys(name, columns.key, tables["train"], tables.get("test"))
    return Source(
        name=name,
        classes=tuple(called),
        train=tables["train"],
        test=tables.get("test"),
        validation=tables.get("validation"),
        key_name=columns.key,
        label_name=columns.label,
        notes=tuple(map(printable, said)),
    )


def with_test(name: str, parts: dict[str, Rows], what: str) -> list[str]:
    """Let the validation rows be the test set where there is no other; a note of that.

    Args:
        parts: rows by split, changed in place. what: what is lacking.
    """
    if "test" in parts or "validation" not in parts:
        return []
    parts["test"] = parts.pop("validation")
    return [f"{name}: has no {what}; its validation split is the test set."]


def _codes(label_names: Mapping[Any, str]) -> dict[str, str]:
    """The class of each label as it may stand in a table. Names that are one in Unicode's composed form are one class."""
    called = {code: unicodedata.normalize("NFC", name) for code, name in label_names.items()}
    return {spelled(code) or "": name for code, name in called.items()} | {str(code): name for code, name in called.items()}


def _labels(
    name: str, splits: Mapping[str, Table], column: str, codes: Mapping[str, str] | None
) -> tuple[dict[str, list[str | None]], dict[str, set[str]]]:
    """The labels of each split (None for each row where the column is absent), and how each class stands in the table.

    Labels with ``codes`` are the names of these, None for any other.
    """
    spellings: dict[str, set[str]] = {}
    read: dict[str, str | None] = {}  # of labels that are text: there are many of a kind

    def one(value: Any) -> str | None:
        if not isinstance(value, str):
            _check_kind(value, name, column)
        text = str(value)
        if isinstance(value, str) and text in read:
            return read[text]
        label = spelled(value)
        if codes is not None and label is not None:
            label = codes.get(text, codes.get(label))
        if isinstance(value, str):
            read[text] = label
        if label is not None:
            spellings.setdefault(label, set()).add(text.strip() if isinstance(value, str) else label)
        return label

    return {split: [one(value) for value in _cells(table, column)] for split, table in splits.items()}, spellings


def _cells(table: Table, column: str | None) -> list[Any]:
    """A column, None for each row where it is absent."""
    return [None] * len(next(iter(table.values()), [])) if column is None or column not in table else table[column]


def usable(
    table: Table, labels: Sequence[str | None], columns: Columns, known: Collection[str] | None = None
) -> np.ndarray | None:
    """Which rows have text (or picture) and a label in use (bool [n]), or None where the split has no such label."""
    labelled = [value is not None and (known is None or value in known) for value in labels]
    if not any(labelled):
        return None
    if columns.image is not None:
        return np.logical_and(labelled, [image is not None for image in _cells(table, columns.image)])
    texts = _cells(table, columns.text)
    seconds = texts if columns.pair is None else _cells(table, columns.pair)
    readable = [
        isinstance(text, str) and text.strip() != "" and isinstance(second, str)
        for text, second in zip(texts, seconds, strict=True)
    ]
    return np.logical_and(labelled, readable)


def _all_hidden(labels: Iterable[str | None], trained: Collection[str | None]) -> bool:
    """Whether all labels are negative numbers, the sign for one that is kept back, which no training row has."""
    there = {value for value in labels if value is not None}
    return not there & set(trained) and all((n := number(value)) is not None and n < 0 for value in there)


def too_many(classes: int, rows: int) -> bool:
    """Whether a column with so many different values can hardly be a label."""
    return classes > 20 and classes > min(MOST_CLASSES, rows // 2)


def _check_number(name: str, column: str, classes: int, rows: int) -> None:
    if too_many(classes, rows):
        raise UserError(
            f'column "{column}" of {name} has {classes} different values, too many for a label: name another column with --label.'
        )


def rows_of(table: Table, index: np.ndarray, columns: Columns, labels: list[int], first: int) -> Rows:
    """The rows of a table at the positions ``index``, with these labels; ``first`` is the id of the table's first row."""

    def column(name: str | None) -> list[str] | None:
        return [str(table[name][i]) for i in index.tolist()] if name is not None and name in table else None

    pictured = [] if columns.image is None else table[columns.image]
    keys = None if columns.key is None or columns.key not in table else table[columns.key]
    return Rows(
        texts=column(columns.text) or [] if columns.image is None else None,
        images=None if columns.image is None else Images([pictured[i] for i in index.tolist()]),
        pairs=column(columns.pair),
        labels=np.array(labels, dtype=np.int64),
        ids=index + first,
        keys=None if keys is None else [spelled(keys[i]) or "" for i in index.tolist()],
    )


def _check_kind(value: Any, name: str, column: str) -> None:
    """Refuse what is no label."""
    if isinstance(value, float):
        if value == value and not value.is_integer():
            raise NoColumn(
                f'column "{column}" of {name} holds numbers such as {value:g}, and classification needs classes',
                "name another column with --label, or predict the number with --task regression",
            )
    elif value is not None and not isinstance(value, int):
        raise UserError(f'column "{column}" of {name} holds {type(value).__name__} values, not one class a row; see --label.')


def _names(
    splits: Mapping[str, Table],
    labels: dict[str, list[str | None]],
    kept: dict[str, np.ndarray],
    columns: Columns,
    order: list[str],
) -> list[str]:
    """What the classes are called: by the companion column where it gives each label one name of its own."""
    names: dict[str | None, set[str]] = {value: set() for value in order}
    for split, index in kept.items():
        companion = _cells(splits[split], columns.names)
        for i in index.tolist():
            if called := spelled(companion[i]):
                names[labels[split][i]].add(called)
    unique = {next(iter(found)) for found in names.values() if len(found) == 1}
    return [next(iter(names[v])) for v in order] if len(unique) == len(order) else order
