"""What a site says of a test of classes, and scores of the sums over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.communication.strict import Refused, is_number

LARGEST = 1e15  # that a count or a loss may be: beyond it sums over sites are no numbers any more
Three = tuple[int, int, int]


@dataclass(frozen=True)
class Counts:
    """Right answers of n, and the sum of the rows' losses, which is not finite where outputs are not.

    Attributes:
        classes: of each class how many rows were rightly given it, how many were given it, and how many have it; None = not told.
        top5: rows whose class is among the five most likely; None = not told.
    """

    n: int
    right: int
    loss: float
    classes: tuple[Three, ...] | None = None
    top5: int | None = None

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)

    def as_json(self) -> dict[str, Any]:
        """JSON has no word for the loss of a model that has diverged."""
        found: dict[str, Any] = {"n": self.n, "right": self.right, "loss": None if self.blank else self.loss}
        more = {"classes": self.classes and [list(three) for three in self.classes], "top5": self.top5}
        return found | {name: value for name, value in more.items() if value is not None}


def read(told: Mapping[str, Any], classes: int, top5: bool = False) -> Counts:
    """What a stranger says; what it was not asked for is not read.

    Args:
        classes: for how many of them counts are to be told; 0 = for none. top5: :attr:`Counts.top5` is to be told.

    Raises:
        Refused: these are no scores.
    """
    given: list[Any] = [told.get(key) for key in ("n", "right", "loss")]
    n, right, loss = given
    loss = math.nan if loss is None else loss
    fits = is_number(n, int) and is_number(right, int) and is_number(loss, int, float)
    if not fits or not 0 <= right <= n or not 0 < n < LARGEST or abs(loss) >= LARGEST:
        raise Refused("The counts are not those of a test.")
    if not math.isfinite(loss):
        return Counts(n, right, float(loss))
    by_class = _by_class(told.get("classes"), classes, n, right) if classes else None
    likely: Any = told.get("top5") if top5 else None
    if top5 and not (is_number(likely, int) and right <= likely <= n):
        raise Refused("The counts are not those of a test.")
    return Counts(n, right, float(loss), by_class, likely)


def _by_class(told: Any, classes: int, n: int, right: int) -> tuple[Three, ...]:
    """Counts of each class as a stranger tells them, which have to add up to those of all.

    Raises:
        Refused: they do not.
    """
    rows = told if isinstance(told, list) and len(told) == classes else []
    if not rows or not all(isinstance(r, list) and len(r) == 3 and all(is_number(v, int) for v in r) for r in rows):
        raise Refused("The counts by class are none.")
    fits = all(0 <= hit <= min(given, have) for hit, given, have in rows)
    if not fits or [sum(c) for c in zip(*rows, strict=True)] != [right, n, n]:
        raise Refused("The counts by class do not add up to those of all.")
    return tuple((hit, given, have) for hit, given, have in rows)


def summed(told: Sequence[Sequence[Three]]) -> np.ndarray:
    """[C, 3] counts of all sites together."""
    return np.asarray(told, dtype=np.float64).sum(0)


def f1_of(counts: np.ndarray) -> np.ndarray:
    """[C] of [C, 3] counts: 2 right / (given + have); NaN for a class that neither occurs nor is given."""
    right, given, have = counts.T
    with np.errstate(invalid="ignore"):
        return 2 * right / (given + have)


def macro_f1(counts: np.ndarray) -> float:
    """The mean F1 over classes that occur."""
    return float(np.mean(f1_of(counts)[counts[:, 2] > 0]))


def matthews(counts: np.ndarray) -> float:
    """The correlation of given and true classes (Gorodkin, 2004), which for two classes is Matthews'; 0 where one is constant."""
    right, given, have = counts.T
    s, c = have.sum(), right.sum()
    spread = (s**2 - (given**2).sum()) * (s**2 - (have**2).sum())
    return float((c * s - (given * have).sum()) / math.sqrt(spread)) if spread > 0 else 0.0
