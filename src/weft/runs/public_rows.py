"""Public rows: what the server of a run may train on itself. They lie in a table of their own, which no client has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weft.data import labels
from weft.data.columns import wanted_by
from weft.data.rows import Rows, Source
from weft.data.sources import load
from weft.errors import UserError
from weft.experiment import Experiment
from weft.tasks.kinds import LANGUAGE, suits
from weft.tensors.keyed import numpy_generator
from weft.words import count


def read(x: Experiment, kind: str, reads: str, classes: Sequence[str], own: Rows | None) -> tuple[Rows, list[str]]:
    """The training rows of an experiment's public data, with labels as the run counts them, and notes on them.

    Rows that the run has too, whoever's they are, are left out before some are drawn.

    Args:
        kind: of the task. reads: what the backbone does, ``texts``, ``images`` or ``items``.
        own: all rows of the run, None = unknown.

    Raises:
        UserError: no such data, rows of another kind, a label that the run does not have, or nothing but rows of the run.
    """
    source = _source(x)
    rows = source.train
    _check(source.name, rows, kind, reads, own)
    rows, notes = labels.declared(source, classes).train, list(source.notes)
    if own is not None:
        known = {own.content(i) for i in range(len(own))}
        new = np.array([rows.content(i) not in known for i in range(len(rows))], dtype=bool)
        if not new.any():
            raise UserError(f"all rows of {source.name} are rows of the run's own data: give other --public data.")
        if not new.all():
            some = count(int((~new).sum()), "row")
            notes.append(f"{some} of {source.name} that the clients or the tests have too, which are left out.")
        rows = rows.take(new)
    if x.public_rows is not None and x.public_rows < len(rows):
        drawn = numpy_generator(x.seed, "data/public").permutation(len(rows))[: x.public_rows]
        rows = rows.take(np.sort(drawn))
    return rows, [*notes, f"{count(len(rows), 'row')} of {source.name}, at the server alone."]


def _source(x: Experiment) -> Source:
    """As the data themselves are read; where they are not columns of those names, by a guess."""
    named: dict[str, Any] = {"image": x.image, "text": x.text, "pair": x.pair, "label": x.label}
    try:
        return load(x.public, seed=x.seed, one_class=True, wanted=wanted_by(x.task), core=x.core, **named)
    except UserError:
        if not any(named.values()):
            raise
    return load(x.public, seed=x.seed, one_class=True, wanted=wanted_by(x.task), core=x.core)


def _check(name: str, rows: Rows, kind: str, reads: str, own: Rows | None) -> None:
    """
    Raises:
        UserError: the rows are not what the run's are.
    """
    if rows.read_as != reads:
        raise UserError(f"the rows of {name} are {rows.read_as}, and those of the run {reads}: give other --public data.")
    try:
        suits(kind, rows)
    except UserError:
        raise UserError(
            f"the rows of {name} are not what the run learns from, which is {kind}: give other --public data."
        ) from None
    if kind not in LANGUAGE and own is not None and (own.pairs is None) != (rows.pairs is None):
        words = ("single texts", "pairs of texts")
        mine, theirs = (words[r.pairs is not None] for r in (own, rows))
        raise UserError(f"the rows of {name} are {theirs}, and those of the run {mine}: give other --public data.")
