"""What a site says of a test of preferences, and scores of the sums over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.communication.strict import Refused, is_number
from weft.tasks.counts import LARGEST
from weft.tasks.summed import OfLoss

SLACK = 1e-6  # of rounding in the sums


@dataclass(frozen=True)
class Choices(OfLoss):
    """n rows of two answers.

    Attributes:
        won: rows whose chosen answer has the larger reward. margin: the sum of the differences.
        loss: the sum of the rows' losses, not finite where outputs are not.
    """

    n: int
    won: int
    margin: float
    loss: float


def summed(told: Sequence[Choices]) -> Choices:
    """All of them together."""
    return Choices(
        sum(one.n for one in told),
        sum(one.won for one in told),
        math.fsum(one.margin for one in told),
        math.fsum(one.loss for one in told),
    )


def read(told: Mapping[str, Any]) -> Choices:
    """What a stranger says.

    Raises:
        Refused: these are no scores.
    """
    n, won, margin, loss = (told.get(key) for key in ("n", "won", "margin", "loss"))
    _check(is_number(n, int) and 0 < n < LARGEST)  # type: ignore[operator]
    assert isinstance(n, int)
    if loss is None:
        return Choices(n, 0, math.nan, math.nan)
    _check(is_number(won, int) and is_number(margin, int, float) and is_number(loss, int, float))
    assert isinstance(won, int) and isinstance(margin, int | float) and isinstance(loss, int | float)
    _check(0 <= won <= n and abs(margin) < LARGEST and 0 <= loss < LARGEST)
    # the loss is convex: a mean is no smaller than that of the mean margin
    mean = margin / n
    least = max(-mean, 0.0) + math.log1p(math.exp(-abs(mean)))
    _check(loss >= n * least * (1 - SLACK))
    return Choices(n, won, float(margin), float(loss))


def _check(fits: Any) -> None:
    if not fits:
        raise Refused("The sums are not those of a test of preferences.")
