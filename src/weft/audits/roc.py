"""How well a score tells members from others: area under the curve, and members found at a small rate of false alarms."""

from __future__ import annotations

import numpy as np

Z95 = 1.6449
"""The 95 % quantile of a normal distribution."""


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member [m] scores above another [n]; ties count half (Mann & Whitney, 1947)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([members, others]))
    m = len(members)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * len(others)))


def lowest_auc(area: float, members: int, others: int) -> float:
    """Its lower bound, 95 %, one-sided, by the standard error of Hanley & McNeil, Radiology 1982."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (members - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)) / (members * others)
    return area - Z95 * max(variance, 0.0) ** 0.5


def found_at(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """The share of members that score above a threshold which at most ``rate`` of the others exceed."""
    allowed = int(rate * len(others))
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return float((members > threshold).mean())
