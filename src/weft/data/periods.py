"""In which period a row arrives: the deal of continual learning, over time as well as over clients.

Classes in periods are class-incremental learning (Rebuffi et al., CVPR 2017, arXiv 1611.07725), natural keys in periods
domain-incremental learning (van de Ven & Tolias, 2019, arXiv 1904.07734).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.data.rows import Rows
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator
from weft.words import count

ALWAYS = -1
"""The period of rows that are there all the time."""


@dataclass(frozen=True)
class Held:
    """Positions of one client's rows among all rows."""

    train: np.ndarray
    others: np.ndarray


def deal(rows: Rows, clients: Mapping[str, Held], periods: int, by: str, seed: int, classes: Sequence[str]) -> np.ndarray:
    """The period of each row, from 0, int64 [n].

    Args:
        by: ``classes``, in an order drawn from the seed, the same for all clients; ``own-classes``, each client's in an order of
            its own; ``keys``, natural ones, in an order drawn from the seed; ``rows``, training rows at random, where test rows
            are there all the time.

    Raises:
        UserError: there are fewer of these than periods, or rows have none.
    """
    if by in ("classes", "own-classes") and not rows.of_classes:
        raise UserError(f"rows that are not each of one class can't arrive by classes: use --periods-by {_other(rows)}.")
    found = np.full(len(rows), ALWAYS, dtype=np.int64)
    if by == "classes":
        found = _groups(len(classes), periods, "class", "classes", seed)[rows.labels]
    elif by == "keys":
        if rows.keys is None:
            raise UserError("the rows have no natural keys to arrive by: use --periods-by classes or rows.")
        keys, number = np.unique(np.array(rows.keys), return_inverse=True)
        found = _groups(len(keys), periods, "natural key", "natural keys", seed)[number]
    else:
        for name, held in clients.items():
            draw = numpy_generator(seed, "periods", by, name)
            if by == "rows":
                for period, some in enumerate(np.array_split(draw.permutation(held.train), periods)):
                    found[some] = period
                continue
            mine = np.concatenate([held.train, held.others])
            for period, some in enumerate(np.array_split(draw.permutation(np.unique(rows.labels[mine])), periods)):
                found[mine[np.isin(rows.labels[mine], some)]] = period
    return found


def apart(rows: Rows, of_row: np.ndarray, clients: Mapping[str, Held], by: str, classes: int) -> Rows:
    """The rows, each told apart among the classes of its own period alone: task-incremental learning.

    Raises:
        UserError: periods are not of classes.
    """
    if by not in ("classes", "own-classes"):
        raise UserError(f"with --periods-by {by} a period has no classes of its own: leave --incremental out.")
    allowed = np.ones((len(rows), classes), dtype=bool)
    everybody = np.arange(len(rows))
    groups = [everybody] if by == "classes" else [np.concatenate([h.train, h.others]) for h in clients.values()]
    for mine in groups:
        for period in np.unique(of_row[mine]):
            some = mine[of_row[mine] == period]
            allowed[some] = np.isin(np.arange(classes), rows.labels[some])
    return replace(rows, allowed=allowed if rows.allowed is None else allowed & rows.allowed)


def _groups(number: int, periods: int, one: str, several: str, seed: int) -> np.ndarray:
    """The period of each of so many things."""
    if number < periods:
        raise UserError(f"{count(number, one, several)} can't arrive in {periods} periods: ask for fewer --periods.")
    found = np.empty(number, dtype=np.int64)
    for period, some in enumerate(np.array_split(numpy_generator(seed, "periods").permutation(number), periods)):
        found[some] = period
    return found


def _other(rows: Rows) -> str:
    return "rows" if rows.keys is None else "keys or rows"
