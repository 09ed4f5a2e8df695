"""Which rows are for training, validation and testing: drawn once per source, before the rows are dealt to clients.

Hence the same seed gives the same global test set whatever the number of clients and the way to deal. Rows of equal content are
drawn together, so that none is tested on that was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.data.rows import Rows
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator

TRAIN, VAL, TEST = 0, 1, 2
FEW = 0.01  # of all rows: as many may lie in strata too small to give any up before they are pooled


def draw(rows: Rows, groups: np.ndarray, fractions: Sequence[float], seed: int, purpose: str) -> np.ndarray:
    """Mark rows (int64 [n]) as TRAIN, VAL or TEST, the latter two by ``fractions`` = (validation, test) of each stratum: of each
    label, within each natural key where rows have one.

    A stratum's share is rounded up or down at random with the right mean, so that many small strata do not all round the same
    way. One that could not keep a row for training is pooled with others like it: those of the same key, then those of the same
    label, then all. Every class keeps a row for training.

    Args:
        groups: numbers of contents, see :meth:`weft.data.Rows.groups`. Rows of one content count to the stratum of the first of
            them, and stay in training if they are more than a whole share.

    Raises:
        UserError: fractions that are none.
    """
    val, test = fractions
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(f"validation and test fractions are {val:g} and {test:g}: give numbers from 0 that sum to less than 1.")
    n = len(rows)
    rng = numpy_generator(seed, purpose)
    _, first, unit_of, size = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    finest, *coarser = [stratum[first] for stratum in _strata(rows)]
    order = rng.random(n)[first]
    mark = np.full(len(first), TRAIN)
    open_ = size <= max(max(fractions) * n, 1)  # units that may be held out
    for stratum in (finest, *coarser):
        too_small = _too_small(stratum, size, open_, val + test)
        large = open_ & ~too_small
        _mark(mark, np.flatnonzero(large), stratum, size, order, fractions, rng)
        open_ = too_small
        if stratum is finest and size[open_].sum() <= FEW * n:
            break
    _keep_classes(mark, rows.labels, unit_of, order)
    return mark[unit_of]


def _strata(rows: Rows) -> list[np.ndarray]:
    """Strata of the rows (int64 [n]), from the finest to one of everything."""
    everything = np.zeros(len(rows), dtype=np.int64)
    if rows.keys is None:
        return [rows.labels, everything]
    key = np.unique(np.asarray(rows.keys, dtype=str), return_inverse=True)[1]
    both = np.unique(np.stack([key, rows.labels]), axis=1, return_inverse=True)[1].reshape(-1)
    return [both, key, rows.labels, everything]


def _too_small(stratum: np.ndarray, size: np.ndarray, open_: np.ndarray, held: float) -> np.ndarray:
    """Which of the open units are in strata that might give up all they have: what stays is less than the largest unit."""
    own, at = np.unique(stratum, return_inverse=True)
    total, largest = np.zeros(len(own)), np.zeros(len(own))
    np.add.at(total, at[open_], size[open_])
    np.maximum.at(largest, at[open_], size[open_])
    return open_ & (total * (1 - held) < largest)[at]


def _mark(
    mark: np.ndarray,
    units: np.ndarray,
    stratum: np.ndarray,
    size: np.ndarray,
    order: np.ndarray,
    fractions: Sequence[float],
    rng: np.random.Generator,
) -> None:
    """Hold out a share of ``units``, those first in the order of each stratum. A unit is held out if a random point in it lies
    within the share, so that the mean is right for units of any sizes.
    """
    val, test = fractions
    own, at = np.unique(stratum, return_inverse=True)  # of all units: a stratum draws its offset whether or not it is large
    offset = rng.random(len(own))
    units = units[np.lexsort((order[units], at[units]))]
    at, own_size = at[units], size[units]
    end = np.cumsum(own_size)
    total = np.bincount(at, weights=own_size, minlength=len(own))
    before = np.concatenate([[0], np.cumsum(total)])[:-1]
    end = end - before[at]
    reach = offset[at] * own_size
    mark[units[end <= (val + test) * total[at] + reach]] = VAL
    mark[units[end <= test * total[at] + reach]] = TEST


def _keep_classes(mark: np.ndarray, labels: np.ndarray, unit_of: np.ndarray, order: np.ndarray) -> None:
    """Give back to training one unit of each class that has none there."""
    trained = np.unique(labels[mark[unit_of] == TRAIN])
    for label in np.setdiff1d(labels, trained).tolist():
        own = np.unique(unit_of[labels == label])
        mark[own[order[own].argmax()]] = TRAIN
