"""Labels in the order that an experiment declares, whatever order a data set has them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weft.data import questions
from weft.data.rows import FederatedData, Rows, Source
from weft.data.spelling import spelled
from weft.errors import UserError, nearest


class UnknownLabel(UserError):
    """A row has a label that the experiment does not know."""


def index(
    own: Sequence[str], declared: Sequence[str], labels: np.ndarray, name: str, whose: str = "the classes of this experiment"
) -> np.ndarray:
    """Where each of a data set's classes is among those declared, -1 for one that no row has.

    Where a class is not declared as it is written, it is the one declared that is spelt alike, see :mod:`weft.data.spelling`.

    Args:
        own: classes of the data set. labels: of its rows, indices of them.
        name: of the data set, whose: whose classes are declared; both for the sentence.

    Raises:
        UnknownLabel: rows have a label that is not declared.
    """
    alike = {spelled(label): i for i, label in reversed(list(enumerate(declared)))}
    exact = {label: i for i, label in enumerate(declared)}
    where = {label: i for label in own if (i := exact.get(label, alike.get(spelled(label)))) is not None}
    for i in np.unique(labels).tolist():
        if own[i] not in where:
            shown = ", ".join(declared[:20]) + (" …" if len(declared) > 20 else "")
            raise UnknownLabel(f'{name} has the label "{own[i]}", which is none of {whose}: {shown}.{nearest(own[i], declared)}')
    return np.array([where.get(label, -1) for label in own], dtype=np.int64)


def declared(source: Source, classes: Sequence[str]) -> Source:
    """The same rows with labels that are indices of ``classes``; of questions about pictures those that have such an answer.

    Raises:
        UnknownLabel: a row has a label that is none of them.
    """
    if len(classes) == 1 and (source.train.numbers is not None or source.train.answers is not None):
        return replace(source, classes=tuple(classes))  # whatever a site calls its numbers or answers
    source = questions.within(source, classes)
    every = (source.train, source.test, source.validation, *source.unseen.values(), *source.further.values())
    parts = [rows for rows in every if rows is not None]
    order = index(source.classes, classes, every_label(parts), source.name)

    def mapped(rows: Rows | None) -> Rows | None:
        return None if rows is None else relabelled(rows, order, len(classes))

    train = mapped(source.train)
    assert train is not None
    return replace(
        source,
        classes=tuple(classes),
        train=train,
        test=mapped(source.test),
        validation=mapped(source.validation),
        unseen={key: relabelled(rows, order, len(classes)) for key, rows in source.unseen.items()},
        further={name: relabelled(rows, order, len(classes)) for name, rows in source.further.items()},
    )


def every_label(parts: Sequence[Rows]) -> np.ndarray:
    """All labels of some tables, the tags of their words, the items of their sequences, and what was voted for, int64."""
    columns = [column for rows in parts for column in (rows.labels, rows.every_tag, rows.every_item, rows.every_vote)]
    return np.concatenate(columns)


def relabelled(rows: Rows, order: np.ndarray, classes: int) -> Rows:
    """Rows in which each label, tag of a word, item of a sequence and class that was voted for has another number.

    Args:
        order: int64, the new number of each old one; -1 of one that no row has. classes: how many there are now.
    """
    allowed = None
    if rows.allowed is not None:
        allowed = np.zeros((len(rows), classes), dtype=bool)
        allowed[:, order[order >= 0]] = rows.allowed[:, order >= 0]
    tags = None if rows.tags is None else [order[own] for own in rows.tags]
    items = None if rows.items is None else [tuple(order[list(own)].tolist()) for own in rows.items]
    votes = None if rows.votes is None else [{int(order[c]): v for c, v in own.items()} for own in rows.votes]
    return replace(rows, labels=order[rows.labels], tags=tags, allowed=allowed, items=items, votes=votes)


def same(dealt: FederatedData, classes: Sequence[str]) -> None:
    """Refuse rows that were dealt out with other classes than those declared.

    Raises:
        UnknownLabel: they have others, or the same in another order.
    """
    if classes and tuple(classes) != tuple(dealt.classes):
        raise UnknownLabel(f"{dealt.name} has the classes {', '.join(dealt.classes)}: declare just these, in this order.")
