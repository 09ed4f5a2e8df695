"""What a site says of a test of numbers, and scores of the sums over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.communication.strict import Refused, is_number
from weft.tasks.counts import LARGEST

WRONG = "The sums are not those of a test of numbers."
ROUNDING = 1e-9
Sums = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Moments:
    """Numbers that were given for n rows, and the rows' own.

    Attributes:
        loss: the sum of squared errors, not finite where outputs are not.
        sums: of the given numbers, of the rows' own, of the squares of both, and of their products; None = not told.
    """

    n: int
    loss: float
    sums: Sums | None = None

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)

    def as_json(self, sums: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"n": self.n, "loss": self.loss}
        return found | ({"sums": list(self.sums)} if sums and self.sums is not None else {})

    def score(self, metric: str) -> float:
        """``mse``, ``pearson`` or ``r2`` of what tells it; 0 where one side is constant."""
        if metric == "mse":
            return self.loss / self.n
        assert self.sums is not None
        x, y, xx, yy, xy = (value / self.n for value in self.sums)
        of_given, of_own = xx - x * x, yy - y * y
        tiny = ROUNDING * max(xx, yy, 1.0)
        if metric == "r2":
            return 1 - self.loss / self.n / of_own if of_own > tiny else 0.0
        return (xy - x * y) / math.sqrt(of_given * of_own) if min(of_given, of_own) > tiny else 0.0


def of(given: np.ndarray, own: np.ndarray) -> Moments:
    """The moments of numbers [n] that were given for numbers [n]."""
    sums = (given.sum(), own.sum(), (given**2).sum(), (own**2).sum(), (given * own).sum())
    return Moments(len(own), float(((given - own) ** 2).sum()), tuple(map(float, sums)))  # type: ignore[arg-type]


def summed(told: Sequence[Moments]) -> Moments:
    """All of them together; sums where all tell them."""
    sums = [one.sums for one in told if one.sums is not None]
    whole = tuple(sum(column) for column in zip(*sums, strict=True)) if len(sums) == len(told) else None
    return Moments(sum(one.n for one in told), sum(one.loss for one in told), whole)


def read(told: Mapping[str, Any], sums: bool) -> Moments:
    """What a stranger says; what it was not asked for is not read.

    Args:
        sums: they are to be told.

    Raises:
        Refused: these are no scores.
    """
    n: Any = told.get("n")
    loss: Any = told.get("loss")
    if not is_number(n, int) or not 0 < n < LARGEST:
        raise Refused(WRONG)
    if loss is None:
        return Moments(n, math.nan)
    if not is_number(loss, int, float) or not 0 <= loss < LARGEST:
        raise Refused(WRONG)
    if not sums:
        return Moments(n, float(loss))
    given: Any = told.get("sums")
    if not isinstance(given, list) or len(given) != 5 or not all(is_number(v, int, float) and abs(v) < LARGEST for v in given):
        raise Refused(WRONG)
    x, y, xx, yy, xy = map(float, given)
    slack = ROUNDING * max(xx, yy, 1.0) * n
    spread = (xx - x * x / n, yy - y * y / n)
    fits = min(spread) >= -slack and abs(xx - 2 * xy + yy - loss) <= slack + ROUNDING * loss
    if not fits or (xy - x * y / n) ** 2 > (max(spread[0], 0) + slack) * (max(spread[1], 0) + slack):
        raise Refused("The sums contradict each other.")
    return Moments(n, float(loss), (x, y, xx, yy, xy))
