"""Rows whose labels can be learnt, and clients of unequal size that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.data.images import Images
from weft.data.rows import BOTH, Rows
from weft.data.tagged import rows_of, within
from weft.engines.setup import Tests
from weft.federation.client import ClientState, Splits
from weft.tasks.kinds import GENERATION, MASKED, NEXT_ITEM, PREFERENCE, SEVERAL, TOKENS
from weft.testing.models import WORDS, domain

SIZES = (9, 5, 1, 7, 0, 6)
"""Training rows of each client: one has a single row, one (the fourth) a single class, one none."""

TASKS = ("find", "sort")
"""Of rows of two tasks, see :func:`several_of`: the first tags words, the second tells sentences apart."""
TAGS = ("O", "B-X", "I-X", "B-Y", "I-Y")
"""Of sentences whose words are tagged, see :func:`tagged`."""


def texts(n: int, labels: Sequence[int], classes: int, seed: int = 0, longest: int = 12) -> list[str]:
    """n texts of 1 to ``longest`` words; six in ten words come from their label's share of the vocabulary."""
    rng = np.random.default_rng(seed)
    share = WORDS // classes
    found = []
    for y in list(labels)[:n]:
        count = int(rng.integers(1, longest + 1))
        own = y * share + rng.integers(share, size=count)
        words = np.where(rng.random(count) < 0.6, own, rng.integers(WORDS, size=count))
        found.append(" ".join(f"w{w}" for w in words))
    return found


def pictures(labels: Sequence[int], classes: int, seed: int = 0) -> Images:
    """8×8 pictures of noise, brighter in the share of their rows that belongs to their label."""
    rng = np.random.default_rng((seed, 3))
    found = []
    for y in labels:
        picture = rng.integers(0, 120, size=(8, 8, 3))
        picture[8 * y // classes : 8 * (y + 1) // classes] += 100
        found.append(picture.astype(np.uint8))
    return Images(found)


def rows(
    n: int, classes: int = 3, seed: int = 0, labels: Sequence[int] | None = None, pairs: bool = False, reads: str = "texts"
) -> Rows:
    """A table of n labelled texts (or pairs of them), pictures, or texts about pictures: two about each, but for the last."""
    rng = np.random.default_rng((seed, 1))
    y = np.asarray(rng.integers(classes, size=n) if labels is None else labels, dtype=np.int64)
    if reads == "images":
        return Rows(None, None, y, np.arange(n), images=pictures(y.tolist(), classes, seed))
    if reads == BOTH:
        seen = pictures(y.tolist(), classes, seed)
        shown = seen.take([i - i % 2 for i in range(n)])
        return Rows(texts=texts(n, y.tolist(), classes, seed), images=shown, labels=y, ids=np.arange(n))
    second = texts(n, y.tolist(), classes, seed + 1000) if pairs else None
    return Rows(texts=texts(n, y.tolist(), classes, seed), pairs=second, labels=y, ids=np.arange(n))


def tagged(plain: Rows, spaces: bool = False) -> Rows:
    """The words of texts with tags that can be learnt: a third of the vocabulary is outside, a third X, a third Y.

    Args:
        spaces: whoever labelled every other row has not looked for Y.
    """
    words = [tuple(text.split()) for text in plain.texts or ()]
    tags = []
    for row in words:
        kinds = [3 * int(word[1:]) // WORDS for word in row]
        goes_on = [i > 0 and kinds[i - 1] == kind for i, kind in enumerate(kinds)]
        tags.append(np.array([0 if not kind else 2 * kind - 1 + on for kind, on in zip(kinds, goes_on, strict=True)]))
    keys = [str(i % 2) for i in range(len(words))]
    rows = rows_of(words, tags, plain.ids, keys)
    if not spaces:
        return replace(rows, keys=None)
    space = {"0": np.ones(len(TAGS), dtype=bool), "1": np.array([not tag.endswith("Y") for tag in TAGS])}
    return replace(within(rows, space), keys=None)


def several_of(plain: Rows, classes: int = 3) -> Rows:
    """Rows of two tasks: of every three one has a class, and two have tagged words."""
    words = tagged(plain)
    assert words.words is not None and words.tags is not None
    whole = [i % 3 == 2 for i in range(len(plain))]
    allowed = np.zeros((len(plain), len(TAGS) + classes), dtype=bool)
    for own, sentence in zip(allowed, whole, strict=True):
        own[len(TAGS) :] = sentence
        own[: len(TAGS)] = not sentence
    return Rows(
        texts=plain.texts,
        labels=[int(y) + len(TAGS) if one else int(t) for y, t, one in zip(plain.labels, words.labels, whole, strict=True)],  # type: ignore[arg-type]
        ids=plain.ids,
        words=[() if one else row for row, one in zip(words.words, whole, strict=True)],
        tags=[np.zeros(0, np.int64) if one else row for row, one in zip(words.tags, whole, strict=True)],
        allowed=allowed,
        tasks=[TASKS[one] for one in whole],
    )


def names_of_several(classes: int = 3) -> tuple[str, ...]:
    """The classes of :func:`several_of`."""
    return (*(f"{TASKS[0]}/{tag}" for tag in TAGS), *(f"{TASKS[1]}/class {c}" for c in range(classes)))


def answered(plain: Rows) -> Rows:
    """Prompts with answers that can be learnt: the last word of the prompt and its two neighbours in the vocabulary, or fewer."""
    answers = []
    for i, text in enumerate(plain.texts or ()):
        last = int(text.split()[-1][1:])
        answers.append(" ".join(f"w{(last + j) % WORDS}" for j in range(1 + i % 3)))
    return Rows(texts=plain.texts, images=plain.images, answers=answers, ids=plain.ids)


def compared(plain: Rows) -> Rows:
    """Prompts with two answers that can be told apart: of two to four words, which count up in the chosen one, and down in the
    rejected one.
    """
    chosen: list[str] = []
    rejected: list[str] = []
    for i, text in enumerate(plain.texts or ()):
        last = int(text.split()[-1][1:])
        for answers, step, words in ((chosen, 1, 2 + i % 3), (rejected, -1, 2 + i // 3 % 3)):
            answers.append(" ".join(f"w{(last + step * j) % WORDS}" for j in range(1, 1 + words)))
    return Rows(texts=plain.texts, answers=chosen, rejected=rejected, ids=plain.ids)


def sequenced(plain: Rows, classes: int = 3) -> Rows:
    """Sequences of one to six items of a domain whose next one can be learnt: it is the number after that of the last.

    Args:
        classes: how many items there are, see :func:`weft.testing.models.items`.
    """
    rng, found = np.random.default_rng(5), []
    for y in plain.labels.tolist():
        own = [c for c in range(classes) if domain(c, classes) == domain(y, classes)]
        found.append((*rng.choice(own, rng.integers(0, 6)).tolist(), own[own.index(y) - 1]))
    return Rows(items=found, labels=plain.labels, ids=plain.ids)


def states(
    sizes: Sequence[int] = SIZES,
    classes: int = 3,
    facts: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    reads: str = "texts",
    task: str = "auto",
    spaces: bool = False,
) -> tuple[Rows, list[ClientState], Tests]:
    """Rows of a whole federation, its clients and its tests; every client with rows has 2 for validation and 3 for test.

    Args:
        task: of rows with tags, ``tokens``; with answers, ``generation``; with two of them, ``preference``.
        spaces: see :func:`tagged`.
    """
    rng = np.random.default_rng((seed, 2))
    labels: list[int] = []

    def more(count: int, y: np.ndarray) -> np.ndarray:
        start = len(labels)
        labels.extend(int(v) for v in y)
        return np.arange(start, start + count)

    clients = []
    for i, n in enumerate(sizes):
        skew = rng.dirichlet(np.ones(classes))
        if i == 3:
            skew = np.eye(classes)[0]
        held_out = (2, 3) if n else (0, 0)
        parts = [more(m, rng.choice(classes, m, p=skew)) for m in (n, *held_out)]
        own = dict(facts[i]) if facts else {}
        clients.append(ClientState(f"client-{i}", n, own, data=Splits(*parts)))
    test = more(12, rng.integers(classes, size=12))
    val = more(6, rng.integers(classes, size=6))
    stranger = more(4, rng.integers(classes, size=4))
    table = of_task(rows(len(labels), classes, seed, labels, reads=reads), task, spaces, classes)
    return table, clients, Tests(test, val, {"stranger": stranger})


def of_task(plain: Rows, task: str, spaces: bool = False, classes: int = 3) -> Rows:
    """Rows with classes as rows of a task."""
    if task == TOKENS:
        return tagged(plain, spaces)
    if task == SEVERAL:
        return several_of(plain, classes)
    if task == NEXT_ITEM:
        return sequenced(plain, classes)
    if task in (GENERATION, MASKED):
        return answered(plain)
    return compared(plain) if task == PREFERENCE else plain


def for_server(n: int, classes: int = 3, seed: int = 0, reads: str = "texts", task: str = "auto", spaces: bool = False) -> Rows:
    """n public rows, of the kind of those of :func:`states`, and none of them."""
    return of_task(rows(n, classes, seed + 100, reads=reads), task, spaces, classes)
