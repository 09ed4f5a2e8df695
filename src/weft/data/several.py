"""Several tasks in one federation: a file that names their data, from which one source is made.

Every task has classes of its own. Together they are those of the source, called ``TASK/CLASS``, and each row may have those of
its task alone. A task either tags words or tells sentences (or pairs of them) apart.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weft.data.rows import ClientData, Rows, Source
from weft.data.splits import TRAIN, draw
from weft.errors import UserError, nearest
from weft.words import count

SEPARATOR = "/"
"""Between the name of a task and that of one of its classes."""
KEY = "client"
NAMED = (
    'name text and label as settings of the task, as in label = "COLUMN"; a task tells classes apart or tags words, and neither '
    "predicts numbers nor writes."
)
"""What to do about columns that can't be told."""
Name = Annotated[str, Field(min_length=1)]


class Entry(BaseModel):
    """One task of a file.

    Attributes:
        data: what ``--data`` takes; a path is below the folder of the file, or absolute. text, pair, label, key: columns, as the
            options of these names. limit: at most so many rows of each split.
        only: of rows with a natural key, those with this one.
        clients: who has the task; its rows are dealt out among them evenly. None = one client, called like the task.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    data: Name
    text: Name | None = None
    pair: Name | None = None
    label: Name | None = None
    key: Name | None = None
    limit: Annotated[int, Field(ge=2)] | None = None
    only: Name | None = None
    clients: Annotated[list[Name], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class Part:
    """A task with its data and its clients."""

    name: str
    source: Source
    clients: tuple[str, ...] = field(default=())


def entries(path: Path) -> dict[str, Entry]:
    """The tasks of a file, by name.

    Raises:
        UserError: it can't be read, has no tasks, or one with a name or a setting that there is not.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UserError(
            f"the file of tasks {path} can't be read ({str(e).splitlines()[0]}): see docs/data.md for its form."
        ) from e
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path} names no tasks: give each as [NAME] with its data.")
    found = {}
    for name, table in tables.items():
        if SEPARATOR in name or ":" in name or not name.strip():
            raise UserError(f'the task "{name}" in {path} can\'t be called so: give it a name without "/" and ":".')
        try:
            found[name] = Entry.model_validate(table)
        except ValidationError as e:
            raise UserError(f"[{name}] in {path}: {_said(e.errors()[0])}") from None
    return found


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong with one setting of a task."""
    where, known = ".".join(map(str, error["loc"])), list(Entry.model_fields)
    if error["type"] == "extra_forbidden":
        return f"{where} is no setting of a task; use {', '.join(known)}.{nearest(where, known)}"
    if error["type"] == "missing":
        return f"{where} is missing: it says what the task learns from."
    words = {
        "too_short": "a list of at least one name",
        "list_type": "a list of names",
        "string_too_short": "a name",
        "string_type": "a text",
        "int_type": "a whole number",
        "greater_than_equal": f"at least {error.get('ctx', {}).get('ge')}",
    }
    given = f'"{error["input"]}"' if isinstance(error["input"], str) else error["input"]
    return f"{where} is {given}, but must be {words[error['type']]}."


def joined(name: str, parts: Sequence[Part]) -> Source:
    """One source of several tasks, but for its fingerprint.

    Raises:
        UserError: rows of a task are neither tagged nor of classes.
    """
    for part in parts:
        rows = part.source.train
        if rows.images is not None or not (rows.of_classes or rows.tags is not None):
            raise UserError(
                f'the data of the task "{part.name}" ({part.source.name}) are neither sentences with classes nor tagged words: '
                "several tasks may be of these alone."
            )
    classes = [f"{part.name}{SEPARATOR}{label}" for part in parts for label in part.source.classes]
    first = np.cumsum([0, *(len(part.source.classes) for part in parts)])
    paired = any(rows.pairs is not None for part in parts for rows in _splits(part.source).values())
    each = {part.name: dict(_splits(part.source)) for part in parts}
    present = {split for splits in each.values() for split in splits}
    said = []
    for part in parts:
        for split in sorted(present - each[part.name].keys()):
            each[part.name] |= _drawn(each[part.name]["train"], split)
            said.append(f"{part.name}: has no {split} split, and other tasks do; rows for it are drawn from the training rows.")
    found: dict[str, Rows] = {}
    start = 0
    for split in ("train", "test", "validation"):
        if split not in present:
            continue
        own = []
        for i, part in enumerate(parts):
            rows = each[part.name][split]
            ids = np.arange(start, start + len(rows))
            own.append(_of_task(rows, part, ids, int(first[i]), len(classes), paired))
            start += len(rows)
        found[split] = Rows.concatenate(own)
    said += [f"{part.name}: {note}" for part in parts for note in part.source.notes]
    sizes = {p.name: (count(len(p.source.classes), "class", "classes"), count(len(p.source.train), "row")) for p in parts}
    counted = ", ".join(f"{task} ({classes_of}, {rows_of})" for task, (classes_of, rows_of) in sizes.items())
    return Source(
        name=name,
        classes=tuple(classes),
        train=found["train"],
        test=found.get("test"),
        validation=found.get("validation"),
        key_name=KEY,
        notes=(f"{name}: {count(len(parts), 'task')}: {counted}.", *said),
    )


DRAWN = {"test": 0.2, "validation": 0.1}
"""The share of training rows that a split is drawn from, where other tasks have one of their own."""


def _drawn(rows: Rows, split: str) -> dict[str, Rows]:
    """Training rows apart from those of another split; equal rows stay together."""
    fractions = (DRAWN[split], 0.0) if split == "validation" else (0.0, DRAWN[split])
    mark = draw(rows, rows.groups(), fractions, 0, f"data/several/{split}")
    return {"train": rows.take(mark == TRAIN), split: rows.take(mark != TRAIN)}


def _splits(source: Source) -> Mapping[str, Rows]:
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    return {name: rows for name, rows in splits.items() if rows is not None and len(rows)}


def _of_task(rows: Rows, part: Part, ids: np.ndarray, first: int, classes: int, paired: bool) -> Rows:
    """The rows of one task among several: with tags and labels behind those of the tasks before it."""
    n, own = len(rows), len(part.source.classes)
    allowed = np.zeros((n, classes), dtype=bool)
    allowed[:, first : first + own] = True if rows.allowed is None else rows.allowed
    clients = part.clients or (part.name,)
    nobody = np.zeros(0, dtype=np.int64)
    return Rows(
        texts=rows.texts,
        pairs=(rows.pairs or [""] * n) if paired else None,
        labels=rows.labels + first,
        ids=ids,
        keys=[clients[i % len(clients)] for i in range(n)],
        words=[()] * n if rows.words is None else rows.words,
        tags=[nobody] * n if rows.tags is None else [tags + first for tags in rows.tags],
        allowed=allowed,
        tasks=[part.name] * n,
    )


def kept(source: Source, only: str, task: str) -> Source:
    """The rows of a natural key alone, with the classes that its rows may have.

    Raises:
        UserError: there are no rows with it.
    """
    keys = sorted(set(source.train.keys or ()) - {""})
    if only not in keys:
        there = (
            f"have {', '.join(keys[:10])}"
            if keys
            else 'have no natural keys: name their column with key = "COLUMN", or leave only out'
        )
        raise UserError(f'the task "{task}" has only = "{only}", and the rows of {source.name} {there}.{nearest(only, keys)}')

    def of(rows: Rows | None) -> Rows | None:
        return None if rows is None or rows.keys is None else rows.take(np.array([key == only for key in rows.keys]))

    splits = {split: of(rows) for split, rows in _splits(source).items()}
    train = splits["train"]
    assert train is not None
    used = np.zeros(len(source.classes), dtype=bool)
    used[train.every_tag if train.tags is not None else train.labels] = True
    if train.tags is not None:
        used[0] = True  # outside of all entities
    return _with_classes(
        replace(source, train=train, test=splits.get("test"), validation=splits.get("validation"), unseen={}), used
    )


def _with_classes(source: Source, used: np.ndarray) -> Source:
    """A source with the classes that are used; rows of others are left out."""
    from weft.data.labels import relabelled

    order = np.where(used, np.cumsum(used) - 1, -1)
    names = tuple(name for name, there in zip(source.classes, used, strict=True) if there)

    def of(rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        tags = rows.tags
        fits = used[rows.labels] if tags is None else np.array([bool(used[own].all()) for own in tags], dtype=bool)
        few = rows.take(fits)
        return relabelled(few, order, len(names))

    train = of(source.train)
    assert train is not None
    return replace(
        source, classes=names, train=train, test=of(source.test), validation=of(source.validation), unseen={}, further={}
    )


def tasks_of(classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where the classes of each task begin and end, of names ``TASK/CLASS`` in their order.

    Raises:
        UserError: a name is of another form, or the classes of a task do not lie together.
    """
    found: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(classes):
        task, sign, label = name.partition(SEPARATOR)
        first, end = found.get(task, (i, i))
        if not sign or not task or not label or end != i:
            raise UserError("the classes of several tasks are called TASK/CLASS, those of a task one after another.")
        found[task] = first, i + 1
    return found


def facts(tasks: Sequence[str], train: np.ndarray, others: Sequence[np.ndarray] = ()) -> dict[str, int]:
    """The tasks of a client, with its training rows of each.

    Args:
        tasks: of all rows of the table. train: positions of its training rows. others: of those that it has for other ends.
    """
    found = dict.fromkeys(sorted({tasks[i] for rows in (train, *others) for i in rows.tolist()}), 0)
    for i in train.tolist():
        found[tasks[i]] += 1
    return found


def of_client(client: ClientData) -> dict[str, int]:
    """:func:`facts` of a client whose rows lie in tables of its own."""
    own, *others = ([] if rows.tasks is None else list(rows.tasks) for rows in (client.train, client.val, client.test))
    return {task: own.count(task) for task in sorted({*own, *(task for some in others for task in some)})}
