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
        sums: the mean of the given numbers and that of the rows' own; then, of what is left without these means, the sums of the
            squares of both and of their products. Centred, as the squares of large numbers hide a small spread. None = not told.
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
        mean, own_mean, xx, yy, xy = self.sums
        if _constant(yy, own_mean, self.n):
            return 0.0
        if metric == "r2":
            return 1 - self.loss / yy
        return 0.0 if _constant(xx, mean, self.n) else xy / (math.sqrt(xx) * math.sqrt(yy))


def _constant(squares: float, mean: float, n: int) -> bool:
    """Whether a sum of squares about a mean is rounding alone."""
    return squares <= n * (1e-14 * abs(mean)) ** 2


def of(given: np.ndarray, own: np.ndarray) -> Moments:
    """The moments of numbers [n] that were given for numbers [n]."""
    x, y = given - given.mean(), own - own.mean()
    sums = (given.mean(), own.mean(), (x**2).sum(), (y**2).sum(), (x * y).sum())
    return Moments(len(own), float(((given - own) ** 2).sum()), tuple(map(float, sums)))  # type: ignore[arg-type]


def summed(told: Sequence[Moments]) -> Moments:
    """All of them together; sums where all tell them (Chan et al., 1979)."""
    n = sum(one.n for one in told)
    sums = [(one.n, one.sums) for one in told if one.sums is not None]
    whole = None
    if len(sums) == len(told):
        mean, own = (sum(m * each[i] for m, each in sums) / n for i in (0, 1))
        off = [(m, each[0] - mean, each[1] - own) for m, each in sums]
        xx, yy, xy = (sum(each[i] for _, each in sums) for i in (2, 3, 4))
        apart = [sum(m * value for (m, *_), value in zip(off, some, strict=True)) for some in (
            [x * x for _, x, _ in off], [y * y for _, _, y in off], [x * y for _, x, y in off]
        )]  # fmt: skip
        whole = (mean, own, xx + apart[0], yy + apart[1], xy + apart[2])
    return Moments(n, sum(one.loss for one in told), whole)


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
    mean, own, xx, yy, xy = map(float, given)
    between = n * (mean - own) ** 2
    off = 1e-15 * (abs(mean) + abs(own))  # rounding of the means, which may lie close together far from 0
    slack = ROUNDING * (xx + yy + between) + n * off * (2 * abs(mean - own) + off)
    fits = min(xx, yy) >= 0 and xy * xy <= xx * yy * (1 + ROUNDING) and abs(xx - 2 * xy + yy + between - loss) <= slack
    if not fits:
        raise Refused("The sums contradict each other.")
    return Moments(n, float(loss), (mean, own, xx, yy, xy))
