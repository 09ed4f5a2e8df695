"""Where the one relevant item of a row stands in a full ranking, what that is worth, and sums of it over sites."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft.communication.strict import Refused, is_number
from weft.tasks.counts import LARGEST
from weft.tasks.summed import OfLoss

NAMES = ("recall", "ndcg")
FORM = re.compile(r"(recall|ndcg)@([1-9]\d{0,5})")
SLACK = 1e-6  # of rounding in the sums


def split(metric: str) -> tuple[str, int] | None:
    """Name and cut-off of ``recall@10``; None for anything else."""
    found = FORM.fullmatch(metric)
    return None if found is None else (found[1], int(found[2]))


def gains(metric: str, above: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """What each row gains, [n], in the mean over all orders of items with equal scores.

    A row has one relevant item. If it stands at place p, counted from 1, Recall@k is 1 where p ≤ k, and NDCG@k is 1 / log2(1 + p)
    there (K. Järvelin, J. Kekäläinen, TOIS 2002). Of t items with equal scores any order is as good (F. McSherry, M. Najork,
    ECIR 2008): the places above + 1 … above + t are equally likely.

    Args:
        above: how many items have a higher score, [n]. tied: how many others have the same, [n].
    """
    name, k = split(metric) or ("", 0)
    each = np.zeros(k + 1)  # the sum of what the first p places are worth
    each[1:] = np.cumsum(np.ones(k) if name == "recall" else 1 / np.log2(np.arange(1, k + 1) + 1))
    first, last = (np.minimum(place, k) for place in (above, above + tied + 1))
    found: np.ndarray = (each[last] - each[first]) / (tied + 1)
    return found


@dataclass(frozen=True)
class Ranks(OfLoss):
    """n ranked rows.

    Attributes:
        loss: the sum of the rows' losses, not finite where outputs are not. sums: of the rows' gains, by metric.
    """

    n: int
    loss: float
    sums: Mapping[str, float] = field(default_factory=dict)


def summed(told: Sequence[Ranks], metrics: Sequence[str]) -> Ranks:
    """All of them together."""
    sums = {m: math.fsum(one.sums[m] for one in told) for m in metrics}
    return Ranks(sum(one.n for one in told), math.fsum(one.loss for one in told), sums)


def read(told: Mapping[str, Any], metrics: Sequence[str]) -> Ranks:
    """What a stranger says.

    Raises:
        Refused: these are no scores.
    """
    n, loss, sums = (told.get(key) for key in ("n", "loss", "sums"))
    _check(is_number(n, int) and 0 < n < LARGEST)  # type: ignore[operator]
    assert isinstance(n, int)
    if loss is None:
        return Ranks(n, math.nan)
    _check(is_number(loss, int, float) and 0 <= loss < LARGEST)
    _check(isinstance(sums, dict) and all(is_number(sums.get(m), int, float) for m in metrics))
    assert isinstance(loss, int | float) and isinstance(sums, dict)
    found = {m: float(sums[m]) for m in metrics}
    _check(all(-SLACK <= value <= n * (1 + SLACK) for value in found.values()))
    for metric, value in found.items():  # a place is worth less than being there, and further cut-offs no less
        name, k = split(metric) or ("", 0)
        for other, more in found.items():
            kind, far = split(other) or ("", 0)
            if far >= k and (kind == name or (name, kind) == ("ndcg", "recall")):
                _check(value <= more + n * SLACK)
    return Ranks(n, float(loss), found)


def _check(fits: Any) -> None:
    if not fits:
        raise Refused("The sums are not those of a test of rankings.")
