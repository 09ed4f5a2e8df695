"""The learning rate that scores best, of a grid that grows where its best one is at an edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Choice:
    """
    Attributes:
        rate: that scored best; of equal scores the smallest. tried: mean score by rate, of as many seeds as it was tried with.
    """

    rate: float
    tried: dict[float, float]

    @property
    def edge(self) -> bool:
        """Whether it is the largest or the smallest that was tried, so that one beyond might be better."""
        return self.rate in (min(self.tried), max(self.tried))


def choose(
    score: Callable[[float, int], float | None],
    rates: Sequence[float],
    seeds: Sequence[int],
    factor: float = 3.0,
    most: int = 3,
    margin: float = 0.15,
) -> Choice | None:
    """The best rate by the mean of all seeds, of those that are near the best by the first one.

    Args:
        score: of a rate and a seed, more is better; NaN is worse than any number, None not known yet.
        rates: all are tried. factor: to the next rate beyond an edge. most: rates that are tried beyond the grid.
        margin: what is further behind the best so far than this by the first seed is not tried with the others.

    Returns:
        None as soon as a score that is needed is not known.
    """
    first: dict[float, float] = {}
    whole: dict[float, float] = {}
    waiting = sorted(rates)
    while waiting:
        for rate in waiting:
            one = averaged(score, rate, seeds[:1])
            if one is None:
                return None
            first[rate] = one
        for rate in sorted(first):
            if rate not in whole and first[rate] >= max(first.values()) - margin:
                one = averaged(score, rate, seeds)
                if one is None:
                    return None
                whole[rate] = one
        best = best_of(whole)
        beyond = best * factor if best == max(first) else best / factor if best == min(first) else None
        waiting = [] if beyond is None or len(first) >= len(rates) + most else [beyond]
    return Choice(best_of(whole), first | whole)


def averaged(score: Callable[[float, int], float | None], rate: float, seeds: Sequence[int]) -> float | None:
    """Mean score of a rate; None if one is not known."""
    found = []
    for seed in seeds:
        one = score(rate, seed)
        if one is None:
            return None
        found.append(-math.inf if math.isnan(one) else one)
    return mean(found)


def best_of(scores: dict[float, float]) -> float:
    return min(scores, key=lambda rate: (-scores[rate], rate))
