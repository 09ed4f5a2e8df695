"""Rows that were given from Python, and how rows were divided: plain data in, sentences for a person out.

Columns come as whatever a person has: lists, arrays, columns of a frame. Those are taken by position, whatever index they carry.
A function returns what it has checked, or the sentences that a person should read, none where all is well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weft.errors import UserError


def values(column: Any, what: str) -> list[Any]:
    """The values of a column in their order.

    A column of a frame is taken by position: its own index says how rows are called, not where they are.

    Raises:
        UserError: it is no column of values.
    """
    if isinstance(column, str | bytes | Mapping) or hasattr(column, "columns"):
        raise UserError(f"{what} must be a list with a value for each row, not a {type(column).__name__}.")
    if getattr(column, "ndim", 1) != 1:
        raise UserError(f"{what} must have one dimension, a value for each row, but have the shape {list(column.shape)}.")
    if isinstance(column, list):
        return column
    try:
        return list(column.tolist() if hasattr(column, "tolist") else column)
    except TypeError:
        raise UserError(f"{what} must be a list with a value for each row, not a {type(column).__name__}.") from None


def texts(column: Any, what: str) -> list[str]:
    """Texts [n].

    Raises:
        UserError: a row has none, or something else.
    """
    found = values(column, what)
    for i, value in enumerate(found):
        if not isinstance(value, str):
            if missing(value):
                raise UserError(f"{what} have no text in row {i} ({value}): leave out the rows without one.")
            raise UserError(f"{what} must be texts, but row {i} holds {value!r:.40}, a {type(value).__name__}.")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{what} hold half of a surrogate pair in row {i}, which is no text: replace it, as in "
                    'text.encode("utf-8", "replace").decode().'
                ) from None
    return found


def labels(column: Any) -> np.ndarray:
    """Labels, int64 [n].

    Raises:
        UserError: a row has none, or one that is no whole number from 0.
    """
    return _whole(column, "labels", "the number of its class, counted from 0 in the order of the source's classes")


def ids(column: Any) -> np.ndarray:
    """Ids, int64 [n].

    Raises:
        UserError: a row has none, or one that is no whole number from 0.
    """
    return _whole(column, "ids", "a whole number of its own from 0")


def _whole(column: Any, what: str, meaning: str) -> np.ndarray:
    if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind == "i":
        found = column
    else:
        given = values(column, what)
        for i, value in enumerate(given):
            number = isinstance(value, int | float | np.integer | np.floating | np.bool_)
            if not number or not math.isfinite(value) or value != int(value):
                raise UserError(f"{what} must be whole numbers, but row {i} holds {value!r:.40}: give each row {meaning}.")
        try:
            found = np.array([int(value) for value in given], dtype=np.int64)
        except OverflowError:
            raise UserError(f"{what} hold a number of more than 64 bits: give each row {meaning}.") from None
    if len(found) and found.min() < 0:
        i = int(np.argmax(found < 0))
        raise UserError(f"{what} must not be negative, but row {i} holds {found[i]}: give each row {meaning}.")
    return np.array(found, dtype=np.int64)


def numbers(column: Any) -> np.ndarray:
    """Numbers to predict, float64 [n].

    Raises:
        UserError: a row has none.
    """
    try:
        found = np.array(values(column, "numbers"), dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("numbers must be numbers, one for each row.") from None
    if not np.isfinite(found).all():
        raise UserError(f"numbers must be finite, but row {int(np.argmin(np.isfinite(found)))} holds none: leave such rows out.")
    return found


def votes(column: Any, labels: np.ndarray) -> list[dict[int, float]]:
    """How right each class is for each row [n], mappings from a position of a class to a number above 0 and up to 1.

    Args:
        labels: int64 [n], each of which must be a class that is as right as any.

    Raises:
        UserError: they are something else.
    """
    found = values(column, "votes")
    for i, (row, label) in enumerate(zip(found, labels.tolist(), strict=False)):
        fits = isinstance(row, Mapping) and all(type(c) is int and c >= 0 and 0 <= v <= 1 for c, v in row.items())
        if not fits or label not in row or row[label] < max(row.values()):
            raise UserError(
                "votes must say of each row which classes are right, from 0 to 1, and its label must be the best of them, but "
                f"row {i} with the label {label} holds {row!r:.60}."
            )
    return [{c: float(v) for c, v in row.items()} for row in found]


def items(column: Any) -> list[tuple[int, ...]]:
    """Sequences of items [n], each of whole numbers from 0.

    Raises:
        UserError: one is empty, or holds something else.
    """
    found = values(column, "items")
    for i, row in enumerate(found):
        whole = isinstance(row, list | tuple) and all(type(item) is int and item >= 0 for item in row)
        if not whole or not row:
            raise UserError(
                f"items must be sequences of whole numbers from 0, but row {i} holds {row!r:.40}: give each row the numbers "
                "of the classes that came before its label."
            )
    return [tuple(row) for row in found]


ROLES = ("system", "user", "assistant")


def history(column: Any) -> list[tuple[tuple[str, str], ...]]:
    """Earlier turns of a chat [n], each a role and a text.

    Raises:
        UserError: a turn is something else, or has another role.
    """
    return [_turns(turns, i) for i, turns in enumerate(values(column, "history"))]


def _turns(turns: Any, i: int) -> tuple[tuple[str, str], ...]:
    pairs = isinstance(turns, list | tuple) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns)
    if not pairs or any(role not in ROLES or not isinstance(text, str) for role, text in turns):
        raise UserError(
            f"history must hold turns (role, text) with roles {', '.join(ROLES)}, but row {i} holds {turns!r:.60}: give () where "
            "there are none."
        )
    texts([text for _, text in turns], f"the turns of row {i} of history")
    return tuple((role, text) for role, text in turns)


def languages(column: Any) -> list[tuple[str, str]]:
    """Languages of texts and of their answers [n].

    Raises:
        UserError: a row has something else.
    """
    found = values(column, "languages")
    for i, pair in enumerate(found):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
            raise UserError(
                f"languages must hold two for each row, that of its text and that of its answer, but row {i} holds {pair!r:.60}."
            )
    return [(source, target) for source, target in found]


def tags(column: Any, words: Sequence[int]) -> list[np.ndarray]:
    """Tags of the words of n sentences, int64 each.

    Args:
        words: how many words each sentence has.

    Raises:
        UserError: a sentence has more or fewer tags than words, or a tag that is no whole number from 0.
    """
    found = [_whole(one, "tags", "the number of its class") for one in values(column, "tags")]
    for i, (one, n) in enumerate(zip(found, words, strict=False)):
        if len(one) != n:
            raise UserError(f"tags and words must be as many in each row, but row {i} has {n} words and {len(one)} tags.")
    if len(found) != len(words):
        raise UserError(f"tags are of {len(found)} rows, and there are words of {len(words)}.")
    return found


def keys(column: Any) -> list[str]:
    """Natural keys [n], numbers as they are written; "" where a row has none.

    Raises:
        UserError: a key is neither text nor number.
    """
    found = values(column, "keys")
    if all(type(value) is str for value in found):
        return found
    return [_key(value, i) for i, value in enumerate(found)]


def _key(value: Any, i: int) -> str:
    if missing(value):
        return ""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, int | float | np.integer | np.floating | np.bool_):
        return str(value)
    raise UserError(f"keys must be texts or numbers, but row {i} holds {value!r:.40}, a {type(value).__name__}.")


def missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, or pandas' NA and NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))


def same_length(columns: Mapping[str, int | None], n: int, what: str) -> None:
    """Raises:
    UserError: a column (name -> its entries) has not as many entries as there are ``what``.
    """
    for name, length in columns.items():
        if length is not None and length != n:
            raise UserError(f"{name} has {length} entries for {n} {what}: give one for each.")


def classes(names: Any, where: str) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
        UserError: there is none, or two have one name.
    """
    found = tuple(str(name) if isinstance(name, str | int | np.integer) else "" for name in values(names, f"classes of {where}"))
    if not found or any(not name.strip() for name in found):
        raise UserError(f"{where} needs a name for each of its classes, in the order in which labels count them.")
    twice = [name for name, n in Counter(found).items() if n > 1]
    if twice:
        raise UserError(f'{where} has two classes called "{twice[0]}": give each a name of its own.')
    return found


def in_range(found: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Refuse labels (int64 [n]) beyond the classes.

    Raises:
        UserError: there are some.
    """
    if len(found) and found.max() >= len(classes):
        low, high = int(found.min()), int(found.max())
        hint = "subtract 1 from each" if low == 1 and high == len(classes) else "name all classes, in the order of the numbers"
        raise UserError(
            f"the labels of {where} go from {low} to {high}, but it has {len(classes)} classes, which are counted from 0: {hint}."
        )


def unique_ids(splits: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse ids that two rows of a source share, in one split or in two.

    Raises:
        UserError: some do.
    """
    everything = np.concatenate(list(splits.values()))
    found, count = np.unique(everything, return_counts=True)
    if len(found) < len(everything):
        shared = int(found[count > 1][0])
        having = [name for name, own in splits.items() if (own == shared).any()]
        raise UserError(
            f"two rows of {where} have the id {shared} (in {' and '.join(having)}): give every row of all splits an id of its "
            "own, or leave ids out."
        )


# divided rows -----------------------------------------------------------------------------------------------------------


def repeats(groups: np.ndarray, labels: np.ndarray, where: str, what: str) -> list[str]:
    """What is said of rows that stand in a set several times.

    Args:
        groups: int64 [n], the same number for rows of equal content. labels: int64 [n]. what: they share, such as ``text``.
    """
    _, first, size = np.unique(groups, return_index=True, return_counts=True)
    again = len(groups) - len(first)
    if not again:
        return []
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    several = np.unique(pairs[0], return_counts=True)[1]
    torn = int(size[several > 1].sum())
    said = f"{where}: {again} of {len(groups)} rows repeat the {what} of another; equal rows are drawn into one split"
    return [said + (f"; {torn} rows have an equal one with another label." if torn else ".")]


def shared(test: Iterable[Hashable], train: Iterable[Hashable], where: str, split: str = "test") -> list[str]:
    """How many rows of the set's own test split also stand in training.

    Args:
        test, train: what stands for the content of each row.
    """
    known, rows = set(train), list(test)
    both = sum(row in known for row in rows)
    if not both:
        return []
    return [
        f"{where}: {both} of {len(rows)} {split} rows ({100 * both / len(rows):.3g} %) also stand in training: what they measure "
        "is memory."
    ]


DOMAINS = 10
"""Natural keys up to which each one's classes are looked at; where there are more they are people, of few rows each."""


def of_one_class(
    keys: Sequence[str] | None, labels: np.ndarray, classes: Sequence[str], where: str, called: str | None
) -> list[str]:
    """What is said of natural keys all whose rows are of one class, where there are few keys and others have several classes.

    Args:
        called: what a key is.
    """
    if keys is None or not 1 < len(known := sorted({key for key in keys if key})) <= DOMAINS:
        return []
    own = {key: np.unique(labels[[k == key for k in keys]]) for key in known}
    single = {key: classes[int(found[0])] for key, found in own.items() if len(found) == 1}
    if not single or len(single) == len(own):
        return []
    told = ", ".join(f"{key} (of {name})" for key, name in single.items())
    return [f"{where}: all rows of the {called or 'key'} {told} are of one class: a client of it learns to name nothing else."]


def tested(test: int, where: str) -> list[str]:
    """What is said of a federation without test rows."""
    if test:
        return []
    return [f"{where}: there are no test rows, so that the run trains but scores nothing."]


def tasks_tested(trained: Iterable[str], test: Iterable[str], where: str) -> list[str]:
    """What is said of tasks, out of several, that some are trained on and nobody is tested on.

    Args:
        trained, test: the task of each row.
    """
    test = set(test)
    missing = [task for task in dict.fromkeys(trained) if task not in test]
    if not missing or not test:
        return []
    return [f"{where}: there are no test rows of {', '.join(missing)}, so that scores are of the other tasks alone."]


def consistent(rows: Sequence[tuple[int, Hashable]], where: str) -> None:
    """Refuse one id for rows of different content, in a set that was dealt out by hand.

    Args:
        rows: the id of each row, and what stands for its content.

    Raises:
        UserError: an id stands for two rows.
    """
    known: dict[int, Hashable] = {}
    for number, content in rows:
        if known.setdefault(number, content) != content:
            raise UserError(
                f"two different rows of {where} have the id {number}: ids tell rows apart over all clients and splits, so give "
                "every row one of its own."
            )
