"""Rows, sources and federated data: plain immutable tables that the rest of the library reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Rows:
    """An immutable table of n examples of one text classification set.

    ``ids`` are unique over all splits of one source and do not depend on a seed: they key caches and random
    streams. ``pairs`` holds the second text of each example where the task has two, ``keys`` the natural
    client of each row.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: np.ndarray  # int64 [n], index into the classes of the source
    ids: np.ndarray  # int64 [n]
    keys: Sequence[str] | None = None

    def __post_init__(self) -> None:
        n = len(self.texts)
        columns = {"pairs": self.pairs, "labels": self.labels, "ids": self.ids, "keys": self.keys}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries for {n} texts")
        for array in ("labels", "ids"):
            frozen = np.array(getattr(self, array), dtype=np.int64)
            frozen.setflags(write=False)
            object.__setattr__(self, array, frozen)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at the positions ``index`` (int [m] or bool [n]), in that order."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        elif not len(index):  # NumPy gives an empty list the type float64, which cannot index
            index = index.astype(np.int64)
        where = index.tolist()
        return Rows(
            texts=[self.texts[i] for i in where],
            pairs=None if self.pairs is None else [self.pairs[i] for i in where],
            labels=self.labels[index],
            ids=self.ids[index],
            keys=None if self.keys is None else [self.keys[i] for i in where],
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts``, one part after another; pairs and keys stay where every part has them."""

        def joined(columns: list[Sequence[str] | None]) -> list[str] | None:
            present = [column for column in columns if column is not None]
            return [value for column in present for value in column] if len(present) == len(columns) else None

        return Rows(
            texts=[text for part in parts for text in part.texts],
            pairs=joined([part.pairs for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            keys=joined([part.keys for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A loaded data set before it is dealt out to clients.

    ``test`` and ``validation`` are the set's own splits, ``None`` where it has none; ``unseen`` holds the
    rows of natural keys that are never trained on. ``notes`` are sentences a person should read: guessed
    columns, dropped rows, doubts.
    """

    name: str
    classes: tuple[str, ...]
    train: Rows
    test: Rows | None = None
    validation: Rows | None = None
    unseen: Mapping[str, Rows] = field(default_factory=dict)
    key_name: str | None = None  # what the natural key is called, for instance "module"
    fingerprint: str = ""  # sha256 in hexadecimal, see fingerprint()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's own rows. Any split may be empty, and a client may hold one class only."""

    id: str
    train: Rows
    val: Rows
    test: Rows
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the partitioner knows, e.g. {"domain": "sports"}


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set dealt out to clients, with global test and validation sets and held-out clients."""

    name: str
    classes: tuple[str, ...]
    clients: list[ClientData]
    test: Rows
    val: Rows
    unseen: list[ClientData]  # new clients, with test rows only
    fingerprint: str  # of the source: the same for every seed and every way to deal it out
    notes: tuple[str, ...] = ()


def fingerprint(classes: Iterable[str], splits: Mapping[str, Rows | None]) -> str:
    """The sha256 (hexadecimal) of class names and of every row's split, text, pair, label and key.

    Splits are taken in the order of their names and rows in their own order, so the value depends on content
    alone.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        text = value if isinstance(value, str) else f"\0{value!r}"  # so that None and "None" differ
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)

    for name in classes:
        add(name)
    for split, rows in sorted(splits.items()):
        if rows is None:
            continue
        add(split)
        add(len(rows))
        for i, (text, label) in enumerate(zip(rows.texts, rows.labels.tolist(), strict=True)):
            add(text)
            add(None if rows.pairs is None else rows.pairs[i])
            add(label)
            add(None if rows.keys is None else rows.keys[i])
    return digest.hexdigest()
