"""Rows, sources and federated data: plain immutable tables that the rest of the library reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weft.checks import given_rows as checks
from weft.data.images import Images
from weft.errors import UserError

COLUMNS = (
    "texts", "pairs", "images", "words", "allowed", "numbers", "answers", "rejected", "history", "items", "languages", "tasks",
    "votes",
)  # fmt: skip
BESIDE = (
    "pairs", "labels", "ids", "keys", "words", "allowed", "numbers", "answers", "rejected", "history", "items", "languages",
    "tasks", "votes",
)  # fmt: skip
"""Columns beside texts or images."""
BOTH = "texts and images"
"""What rows are read as that are texts about pictures."""
Turns = tuple[tuple[str, str], ...]  # of a chat: who says what


@dataclass(frozen=True, eq=False)
class Rows:
    """An immutable table of n examples of one set of texts, of pictures, or of texts about pictures.

    Columns are lists, arrays or columns of a frame. All are taken by position: an index of their own, as a pandas Series has, is
    not looked at.

    Args:
        texts: str [n]; None for pictures. pairs: str [n], the second text of each example where the task has two.
        labels: whole numbers [n], each the position of a class among those of the source.
        ids: whole numbers [n], unique over all splits of one source. They do not depend on a seed: they key caches and random
            streams. If left out, rows are numbered, and so are the splits of a :class:`Source`, one after another.
        keys: texts or numbers [n], the natural client of each row ("" or None where it tells none).
        words, tags: of sentences whose words are tagged, lists of str [n] and of whole numbers [n], as many in each row: the tags
            are positions among the classes. Texts and labels follow from them, see :func:`weft.data.tagged.rows_of`.
        numbers: finite numbers [n] to predict, of a regression, which has one class.
        answers: str [n], the text to generate for each row. ``texts`` are then what is asked ("" where nothing stands before the
            answer, as of running text; "" for all if left out), ``pairs`` an input beside it ("" where a row has none); labels
            may be left out, all are 0, of one class.
        rejected: str [n], where two answers were compared the worse one of each row; ``answers`` are then the better ones.
        history: earlier turns of a chat [n], each (role, text) with a role of ``system``, ``user`` and ``assistant``; () where
            there are none. None = no row has any.
        languages: of translations, in which language each text is and in which its answer [n], as ("en", "de").
        items: sequences of items [n], each a tuple of positions among the classes, oldest first, at least one of them; the label
            is the item that comes next. ``texts`` may be left out.
        allowed: bool [n, C], the classes that each row may have by the rules of those who labelled it; None = all.
        tasks: str [n], the task that each row is of, where there are several (:mod:`weft.data.several`). Rows of a sentence that
            is told apart as a whole have no words and no tags then, but a label.
        images: the pictures, or a list of anything that is one, see :class:`Images`. Beside ``texts`` they are what each text
            asks about.
        votes: of questions that several people answered, the classes of each row that are right and how much so, mappings from a
            position of a class to a number above 0 and up to 1; the label is the best of them. None = the label alone is right.

    Raises:
        UserError: columns of different length, a label that is no whole number from 0, a row without text, …
    """

    texts: Sequence[str] | None = None
    pairs: Sequence[str] | None = None
    labels: np.ndarray = None  # type: ignore[assignment]  # int64 [n]; what is missing is refused with a sentence
    ids: np.ndarray = None  # type: ignore[assignment]  # int64 [n]
    keys: Sequence[str] | None = None
    images: Images | None = None
    words: Sequence[tuple[str, ...]] | None = None
    tags: Sequence[np.ndarray] | None = None
    allowed: np.ndarray | None = None
    numbers: np.ndarray | None = None
    answers: Sequence[str] | None = None
    rejected: Sequence[str] | None = None
    history: Sequence[Turns] | None = None
    items: Sequence[tuple[int, ...]] | None = None
    languages: Sequence[tuple[str, str]] | None = None
    tasks: Sequence[str] | None = None
    votes: Sequence[Mapping[int, float]] | None = None
    numbered: bool = field(default=False, repr=False)  # whether ids were left out, so that a source may number anew

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.answers is not None:
            put("answers", checks.texts(self.answers, "answers"))
            if self.texts is None:
                put("texts", [""] * len(self.answers or ()))
            if self.labels is None:
                put("labels", np.zeros(len(self), np.int64))
        if self.rejected is not None:
            if self.answers is None:
                raise UserError("rejected are the worse of two answers: give the better ones as answers, or leave them out.")
            put("rejected", checks.texts(self.rejected, "rejected"))
        if self.items is not None:
            put("items", checks.items(self.items))
            if self.texts is None:
                put("texts", [""] * len(self.items or ()))
        if self.texts is None and self.images is None:
            raise UserError("rows are texts, images, or texts about images: give one of them, or both.")
        if self.images is not None and self.texts is not None:
            for name in ("pairs", "words", "rejected", "history", "items"):
                if getattr(self, name) is not None:
                    raise UserError(f"texts about images have no {name}: leave them out, or the images.")
        if self.labels is None:
            raise UserError("rows need labels: give each row the number of its class, counted from 0.")
        for name in ("texts", "pairs", "tasks"):
            if (column := getattr(self, name)) is not None:
                put(name, checks.texts(column, name))
        if self.images is not None and not isinstance(self.images, Images):
            put("images", Images(self.images))
        n, what = len(self), "images" if self.texts is None else "texts"
        if self.ids is None:
            put("ids", np.arange(n))
            put("numbered", True)
        put("labels", checks.labels(self.labels))
        put("ids", checks.ids(self.ids))
        if self.keys is not None:
            put("keys", checks.keys(self.keys))
        if (self.words is None) != (self.tags is None):
            raise UserError("words and their tags go together: give both, or none.")
        if self.words is not None and self.tags is not None:
            put("tags", checks.tags(self.tags, [len(words) for words in self.words]))
        if self.allowed is not None and self.allowed.ndim != 2:
            raise UserError(
                f"allowed must say of each row which classes it may have, [n, C], but has shape {self.allowed.shape}."
            )
        if self.numbers is not None:
            put("numbers", checks.numbers(self.numbers))
        if self.votes is not None:
            put("votes", checks.votes(self.votes, self.labels))
        if self.history is not None:
            if self.answers is None:
                raise UserError("history is what stands before an answer: give answers too, or leave it out.")
            put("history", checks.history(self.history))
        if self.languages is not None:
            if self.answers is None:
                raise UserError("languages are those of a text and its answer: give answers too, or leave them out.")
            put("languages", checks.languages(self.languages))
        columns = {name: getattr(self, name) for name in BESIDE}
        checks.same_length({name: None if column is None else len(column) for name, column in columns.items()}, n, what)
        self.labels.setflags(write=False)
        self.ids.setflags(write=False)

    def __len__(self) -> int:
        return len(self.images if self.texts is None else self.texts)  # type: ignore[arg-type]

    @property
    def read_as(self) -> str:
        """What a backbone has to read of them: ``texts``, ``images``, :data:`BOTH` or ``items``."""
        if self.images is not None:
            return "images" if self.texts is None else BOTH
        return "texts" if self.items is None else "items"

    @property
    def of_classes(self) -> bool:
        """Whether rows are told apart by class: they have neither tags nor numbers nor answers, nor items to come."""
        return self.tags is None and self.numbers is None and self.answers is None and self.items is None

    @property
    def every_tag(self) -> np.ndarray:
        """The tags of all words one after another, int64; none where words are not tagged."""
        return np.concatenate(self.tags) if self.tags else np.zeros(0, np.int64)

    @property
    def every_item(self) -> np.ndarray:
        """The items of all sequences one after another, int64; none where there are no sequences."""
        return np.array([item for own in self.items or () for item in own], dtype=np.int64)

    @property
    def every_vote(self) -> np.ndarray:
        """The classes that were voted for in all rows, int64; none where there are no votes."""
        return np.array([one for own in self.votes or () for one in own], dtype=np.int64)

    def content(self, index: int) -> Hashable:
        """What stands for the content of a row but for its label and key: its texts, the digest of its picture, or both.

        Of a row with an answer that is all that stands before the answer, so that what is asked is on one side of a split; where
        nothing does, it is the answer. Of a sequence of items it is all of it, with the next one.
        """
        if self.items is not None:
            return (*self.items[index], int(self.labels[index]))
        if self.texts is None:
            return self.images.digest(index)  # type: ignore[union-attr]
        if self.images is not None:
            return self.texts[index], self.images.digest(index)
        if self.answers is not None:
            asked = (self.texts[index], self.pairs[index] if self.pairs else "", self.history[index] if self.history else ())
            return asked if any(asked) else self.answers[index]
        return self.texts[index] if self.pairs is None else (self.texts[index], self.pairs[index])

    def groups(self) -> np.ndarray:
        """Numbers of contents, int64 [n]: equal rows have equal ones, counted in the order in which they first occur."""
        number: dict[Hashable, int] = {}
        return np.array([number.setdefault(self.content(i), len(number)) for i in range(len(self))], dtype=np.int64)

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
            words=None if self.words is None else [self.words[i] for i in where],
            tags=None if self.tags is None else [self.tags[i] for i in where],
            allowed=None if self.allowed is None else self.allowed[index],
            numbers=None if self.numbers is None else self.numbers[index],
            answers=None if self.answers is None else [self.answers[i] for i in where],
            rejected=None if self.rejected is None else [self.rejected[i] for i in where],
            history=None if self.history is None else [self.history[i] for i in where],
            items=None if self.items is None else [self.items[i] for i in where],
            languages=None if self.languages is None else [self.languages[i] for i in where],
            tasks=None if self.tasks is None else [self.tasks[i] for i in where],
            votes=None if self.votes is None else [self.votes[i] for i in where],
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts``, one part after another; what not every part with rows has is left out."""
        parts = [part for part in parts if len(part)] or parts[:1]

        def joined(columns: list[Sequence[Any] | None]) -> list[Any] | None:
            present = [column for column in columns if column is not None]
            return [value for column in present for value in column] if len(present) == len(columns) else None

        allowed = [part.allowed for part in parts if part.allowed is not None]
        numbers = [part.numbers for part in parts if part.numbers is not None]
        return Rows(
            texts=joined([part.texts for part in parts]),
            pairs=joined([part.pairs for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            keys=joined([part.keys for part in parts]),
            images=Images.concatenate(images) if len(images := [p.images for p in parts if p.images is not None]) else None,
            words=joined([part.words for part in parts]),
            tags=joined([part.tags for part in parts]),
            allowed=np.concatenate(allowed) if len(allowed) == len(parts) else None,
            numbers=np.concatenate(numbers) if len(numbers) == len(parts) else None,
            answers=joined([part.answers for part in parts]),
            rejected=joined([part.rejected for part in parts]),
            history=joined([part.history for part in parts]),
            items=joined([part.items for part in parts]),
            languages=joined([part.languages for part in parts]),
            tasks=joined([part.tasks for part in parts]),
            votes=joined([part.votes for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A loaded data set before it is dealt out to clients.

    ``test`` and ``validation`` are the set's own splits, ``None`` where it has none; ``unseen`` holds the
    rows of natural keys that are never trained on. ``further`` are test sets beside the set's own, by name.
    ``notes`` are sentences a person should read: guessed columns, dropped rows, doubts.
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
    further: Mapping[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", checks.classes(self.classes, self.name))
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        for name, rows in splits.items():
            if not isinstance(rows, Rows) and (rows is not None or name == "train"):
                raise UserError(f"the {name} rows of {self.name} must be weft.data.Rows, not a {type(rows).__name__}.")
        first = 0
        parts = {name: rows for name, rows in splits.items() if rows is not None}
        if all(rows.numbered for rows in (*parts.values(), *self.unseen.values())):
            for name, rows in parts.items():
                parts[name] = replace(rows, ids=np.arange(first, first + len(rows)), numbered=False)
                object.__setattr__(self, name, parts[name])
                first += len(rows)
            unseen = {}
            for key, rows in self.unseen.items():
                unseen[key] = replace(rows, ids=np.arange(first, first + len(rows)), numbered=False)
                first += len(rows)
            object.__setattr__(self, "unseen", unseen)
        parts |= {f"unseen {key}": rows for key, rows in self.unseen.items()} | dict(self.further)
        for rows in parts.values():
            checks.in_range(rows.labels, self.classes, self.name)
            checks.in_range(rows.every_tag, self.classes, self.name)
            checks.in_range(rows.every_item, self.classes, self.name)
            checks.in_range(rows.every_vote, self.classes, self.name)
        _alike(list(parts.values()), self.classes, self.name)
        checks.unique_ids({name: rows.ids for name, rows in parts.items()}, self.name)

    def each(self, fn: Callable[[Rows], Rows], classes: tuple[str, ...]) -> Source:
        """With rows of all splits changed, of other classes."""
        train, test, validation = (None if rows is None else fn(rows) for rows in (self.train, self.test, self.validation))
        assert train is not None
        unseen, further = ({key: fn(rows) for key, rows in some.items()} for some in (self.unseen, self.further))
        own: dict[str, Any] = {"test": test, "validation": validation, "unseen": unseen, "further": further}
        return replace(self, classes=classes, train=train, fingerprint="", **own)


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
    fingerprint: str = ""  # of the source: the same for every seed and every way to deal it out
    notes: tuple[str, ...] = ()
    further: Mapping[str, Rows] = field(default_factory=dict)  # test sets beside the global one, by name
    scheme: str = ""  # of the deal, "" where somebody else has dealt

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", checks.classes(self.classes, self.name))
        clients = [*self.clients, *self.unseen]
        names = [client.id for client in clients]
        if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ():
            raise UserError(f'{self.name} has two clients called "{min(twice)}": give each a name of its own.')
        parts = [*(rows for c in clients for rows in (c.train, c.val, c.test)), self.test, self.val, *self.further.values()]
        for rows in parts:
            checks.in_range(rows.labels, self.classes, self.name)
            checks.in_range(rows.every_tag, self.classes, self.name)
            checks.in_range(rows.every_item, self.classes, self.name)
            checks.in_range(rows.every_vote, self.classes, self.name)
        _alike(parts, self.classes, self.name)
        _consistent(parts, self.name)


def _alike(parts: Sequence[Rows], classes: Sequence[str], where: str) -> None:
    """Refuse parts that hold other columns than the first: what some lack would be lost for all of them."""
    parts = [rows for rows in parts if len(rows)]
    for rows in parts:
        if any((getattr(rows, name) is None) != (getattr(parts[0], name) is None) for name in COLUMNS):
            raise UserError(
                f"the splits of {where} differ in what they hold: give all of them texts, pairs, images, tags, numbers, answers, "
                "rejected answers, history, items, languages, tasks or votes alike."
            )
        if rows.allowed is not None and rows.allowed.shape[1] != len(classes):
            raise UserError(f"allowed of {where} is of {rows.allowed.shape[1]} classes, and there are {len(classes)}.")


def _consistent(parts: Sequence[Rows], where: str) -> None:
    """Refuse an id that stands for two different rows; rows may be in several parts, as those of a common test set are."""
    every = np.concatenate([rows.ids for rows in parts])
    found, count = np.unique(every, return_counts=True)
    again = found[count > 1]
    twice: list[tuple[int, Hashable]] = []
    for rows in parts:
        for i in np.flatnonzero(np.isin(rows.ids, again)).tolist():
            content = rows.content(i) if rows.images is None else ((rows.texts or {i: ""})[i], rows.images.key(i))
            answer = None if rows.answers is None else (rows.answers[i], rows.rejected and rows.rejected[i])
            twice.append((int(rows.ids[i]), (content, int(rows.labels[i]), answer)))
    checks.consistent(twice, where)


def fingerprint(classes: Iterable[str], splits: Mapping[str, Rows | None]) -> str:
    """The sha256 (hexadecimal) of class names and of every row's split, text (or picture), pair, label and key,
    and of the words, tags, numbers, allowed classes, answers, rejected answers, history, items, languages, task and votes that it
    may have.

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
            if rows.words is not None and rows.tags is not None:
                add("\0".join(rows.words[i]))
                add(repr(rows.tags[i].tolist()))
            if rows.numbers is not None:
                add(repr(float(rows.numbers[i])))
            if rows.allowed is not None:
                add(repr(np.flatnonzero(rows.allowed[i]).tolist()))
            if rows.answers is not None:
                add(rows.answers[i])
            if rows.rejected is not None:
                add(("rejected", rows.rejected[i]))
            if rows.history is not None:
                add(repr(rows.history[i]))
            if rows.items is not None:
                add(repr(rows.items[i]))
            if rows.languages is not None:
                add(repr(rows.languages[i]))
            if rows.tasks is not None:
                add(("task", rows.tasks[i]))
            if rows.texts is not None and rows.images is not None:
                add(rows.images.digest(i))
            if rows.votes is not None:
                add(repr(sorted(rows.votes[i].items())))
    return digest.hexdigest()
