"""An offline set of answers to compare: which of two sentences says what a piece of CPython's standard library does.

What is asked, the chosen answer and the natural client are those of :mod:`weft.data.docstrings`. The rejected answer is the
sentence of something else in the same module. Within a module each sentence is chosen once and rejected once, so that no sentence
is better by itself: what is asked has to be read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from weft.data.docstrings import docstrings
from weft.data.rows import Rows, Source, fingerprint
from weft.data.stdlib import library as installed
from weft.tensors.keyed import numpy_generator

NAME = "docstring_preferences"


def docstring_preferences(library: Path | None = None) -> Source:
    """Read the set from ``library``, by default the running Python's standard library folder.

    The result is kept for the life of the process. Rows of a module that has only one are left out.

    Raises:
        UserError: the library's source is not installed.
    """
    return _read(library or installed())


@lru_cache(maxsize=4)
def _read(library: Path) -> Source:
    plain = docstrings(library)
    train = _compared(plain.train)
    unseen = {module: two for module, rows in plain.unseen.items() if len(two := _compared(rows))}
    whole = fingerprint(plain.classes, {"train": train, "unseen": Rows.concatenate(list(unseen.values()))})
    notes = tuple(note.replace(f"{plain.name}:", f"{NAME}:") for note in plain.notes)
    return replace(plain, name=NAME, train=train, unseen=unseen, fingerprint=whole, notes=notes)


def _compared(rows: Rows) -> Rows:
    """Each row with the answer of the next one on a ring of its module's rows, drawn at random."""
    assert rows.answers is not None and rows.keys is not None
    members: dict[str, list[int]] = defaultdict(list)
    for i, module in enumerate(rows.keys):
        members[module].append(i)
    other: dict[int, int] = {}
    for module, own in members.items():
        ring = numpy_generator(0, NAME, module).permutation(own).tolist()
        if len(ring) > 1:
            other |= dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    kept = sorted(other)
    return replace(rows.take(np.array(kept, dtype=np.int64)), rejected=[rows.answers[other[i]] for i in kept])
