"""Means, spreads and paired differences of the cells of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Numbers over seeds.

    Attributes:
        mean, deviation: of them; the deviation is that of a sample, NaN of one number. n: how many.
    """

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with Student's interval.

    Attributes:
        low, high: at :data:`LEVEL`; NaN of one pair. n: pairs.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def seen(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """
    Args:
        values: none of them NaN, at least one.
    """
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of the second to the first, pair by pair.

    Raises:
        ValueError: they are not as many, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} numbers make no pairs")
    gaps = np.asarray(second) - np.asarray(first)
    n, mean = len(gaps), float(gaps.mean())
    if n == 1:
        return Difference(mean, math.nan, math.nan, 1)
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1) * gaps.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - reach, mean + reach, n)
