"""Rows, sources and federated data: plain immutable tables that the rest of the library reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft.data.images import Images


@dataclass(frozen=True, eq=False)
class Rows:
    """An immutable table of n examples of one set of texts, or of pictures.

    ``ids`` are unique over all splits of one source and do not depend on a seed: they key caches and random
    streams. ``pairs`` holds the second text of each example where the task has two, ``keys`` the natural
    client of each row ("" where it tells none). A set of pictures has ``images`` and no texts.
    """

    texts: Sequence[str] | None
    pairs: Sequence[str] | None
    labels: np.ndarray  # int64 [n], index into the classes of the source
    ids: np.ndarray  # int64 [n]
    keys: Sequence[str] | None = None
    images: Images | None = None

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.images is None):
            raise ValueError("rows are either texts or images")
        n, what = len(self), "images" if self.texts is None else "texts"
        columns = {"pairs": self.pairs, "labels": self.labels, "ids": self.ids, "keys": self.keys}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries for {n} {what}")
        for array in ("labels", "ids"):
            frozen = np.array(getattr(self, array), dtype=np.int64)
            frozen.setflags(write=False)
            object.__setattr__(self, array, frozen)

    def __len__(self) -> int:
        return len(self.images if self.texts is None else self.texts)  # type: ignore[arg-type]

    def take(self, index: np.ndarray) -> Rows:
        """The rows at the positions ``index`` (int [m] or bool [n]), in that order."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        elif not len(index):  # NumPy gives an empty list the type float64, which cannot index
            index = index.astype(np.int64)
        where = index.tolist()
        return Rows(
            texts=None if self.texts is None else [self.texts[i] for i in where],
            pairs=None if self.pairs is None else [self.pairs[i] for i in where],
            labels=self.labels[index],
            ids=self.ids[index],
            keys=None if self.keys is None else [self.keys[i] for i in where],
            images=None if self.images is None else self.images.take(where),
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts``, one part after another; pairs and keys stay where every part has them."""

        def joined(columns: list[Sequence[str] | None]) -> list[str] | None:
            present = [column for column in columns if column is not None]
            return [value for column in present for value in column] if len(present) == len(columns) else None

        return Rows(
            texts=joined([part.texts for part in parts]),
            pairs=joined([part.pairs for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            keys=joined([part.keys for part in parts]),
            images=Images.concatenate(images) if len(images := [p.images for p in parts if p.images is not None]) else None,
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
    label_name: str | None = None  # the column of the label, if one holds it
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
    """The sha256 (hexadecimal) of class names and of every row's split, text (or picture), pair, label and key.

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
        for i, label in enumerate(rows.labels.tolist()):
            add(rows.texts[i] if rows.texts is not None else rows.images.digest(i) if rows.images is not None else None)
            add(None if rows.pairs is None else rows.pairs[i])
            add(label)
            add(None if rows.keys is None else rows.keys[i])
    return digest.hexdigest()
