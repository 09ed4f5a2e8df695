"""Which rows are for training, validation and testing: drawn once per source, before the rows are dealt to
clients.

Hence the same seed gives the same global test set whatever the number of clients and the way to deal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.data.rows import Rows
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator

TRAIN, VAL, TEST = 0, 1, 2


def strata(rows: Rows) -> np.ndarray:
    """The stratum of each row (int64 [n]): its label, within its natural key where it has one."""
    if rows.keys is None:
        return rows.labels
    key = np.unique(np.asarray(rows.keys, dtype=str), return_inverse=True)[1]
    return np.unique(np.stack([key, rows.labels]), axis=1, return_inverse=True)[1].reshape(-1)


def draw(stratum: np.ndarray, fractions: Sequence[float], seed: int, purpose: str) -> np.ndarray:
    """Mark rows (int64 [n]) as TRAIN, VAL or TEST, the latter two by ``fractions`` = (validation, test) of
    each stratum.

    A stratum's share is rounded up or down at random with the right mean, so that many small strata do not
    all round the same way; one row of each stratum always stays for training.
    """
    val, test = fractions
    if min(val, test) < 0 or val + test >= 1:
        raise UserError(f"validation and test fractions are {val:g} and {test:g}: give numbers from 0 that sum to less than 1.")
    rng = numpy_generator(seed, purpose)
    n = len(stratum)
    _, stratum, size = np.unique(stratum, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.random(n), stratum))
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(size) - size, size)
    offset = rng.random(len(size))
    tests = np.minimum(np.floor(test * size + offset), size - 1)
    held = np.minimum(np.floor((test + val) * size + offset), size - 1)
    return np.where(rank < tests[stratum], TEST, np.where(rank < held[stratum], VAL, TRAIN))
