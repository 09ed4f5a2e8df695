"""What a site says of a test of tagged sentences, and scores of the sums over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.communication.strict import Refused, is_number
from weft.tasks import counts
from weft.tasks.counts import LARGEST, Three

WRONG = "The counts are not those of a test of tagged words."


@dataclass(frozen=True)
class Entities:
    """Entities of n sentences, and their words.

    Attributes:
        words, right: tagged words, and those whose tag was given to them.
        loss: the sum of the words' losses, not finite where outputs are not.
        all: how many entities were rightly found, how many were found, and how many there are.
        types: the same of each type; None = not told.
    """

    n: int
    words: int
    right: int
    loss: float
    all: Three = (0, 0, 0)
    types: tuple[Three, ...] | None = None

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.words, 1)

    def as_json(self, by_type: bool) -> dict[str, Any]:
        """JSON has no word for the loss of a model that has diverged."""
        if self.blank:
            return {"n": self.n, "loss": None}
        found = {"n": self.n, "words": self.words, "right": self.right, "loss": self.loss, "all": list(self.all)}
        return found | ({"types": [list(three) for three in self.types]} if by_type and self.types is not None else {})

    def score(self, metric: str, types: Sequence[str]) -> float:
        """One metric; 0 where nothing was found, or there is nothing to find, as ``seqeval`` has it.

        Args:
            types: the names of the types, in their order.
        """
        hit, given, have = self.all
        if metric == "token_accuracy":
            return self.right / max(self.words, 1)
        if metric == "precision":
            return hit / max(given, 1)
        if metric == "recall":
            return hit / max(have, 1)
        if metric == "entity_f1":
            return 2 * hit / max(given + have, 1)
        table = np.asarray(self.types, dtype=np.float64)
        if metric == "macro_f1":
            return counts.macro_f1(table) if table[:, 2].any() else 0.0
        hit, given, have = table[types.index(metric.removeprefix("f1:"))]
        return float(2 * hit / max(given + have, 1))


def summed(told: Sequence[Entities]) -> Entities:
    """All of them together; types where all tell them."""
    types = [one.types for one in told if one.types is not None]
    n, words, right = (sum(column) for column in zip(*((one.n, one.words, one.right) for one in told), strict=True))
    return Entities(
        n,
        words,
        right,
        sum(one.loss for one in told),
        all=_sums([one.all for one in told]),
        types=tuple(_sums(of_type) for of_type in zip(*types, strict=True)) if len(types) == len(told) else None,
    )


def _sums(some: Sequence[Three]) -> Three:
    hit, given, have = (sum(column) for column in zip(*some, strict=True))
    return hit, given, have


def read(told: Mapping[str, Any], types: int) -> Entities:
    """What a stranger says; what it was not asked for is not read.

    Args:
        types: of how many of them counts are to be told; 0 = of none.

    Raises:
        Refused: these are no scores.
    """
    n: Any = told.get("n")
    loss: Any = told.get("loss")
    if not is_number(n, int) or not 0 < n < LARGEST:
        raise Refused(WRONG)
    if loss is None:
        return Entities(n, 0, 0, math.nan)
    words: Any = told.get("words")
    right: Any = told.get("right")
    if not is_number(words, int) or not is_number(right, int) or not is_number(loss, int, float):
        raise Refused(WRONG)
    if not 0 <= right <= words < LARGEST or not abs(loss) < LARGEST:
        raise Refused(WRONG)
    whole = _three(told.get("all"), words)
    by_type = _types(told.get("types"), types, words, whole) if types else None
    return Entities(n, words, right, float(loss), whole, by_type)


def _types(told: Any, types: int, words: int, whole: Three) -> tuple[Three, ...]:
    if not isinstance(told, list) or len(told) != types:
        raise Refused(WRONG)
    found = tuple(_three(one, words) for one in told)
    if _sums(found) != whole:
        raise Refused("The counts by type do not add up to those of all.")
    return found


def _three(told: Any, words: int) -> Three:
    """Entities rightly found, found, and there: no more than there are words."""
    if not isinstance(told, list) or len(told) != 3 or not all(is_number(value, int) for value in told):
        raise Refused(WRONG)
    hit, given, have = told
    if not 0 <= hit <= min(given, have) or max(given, have) > words:
        raise Refused(WRONG)
    return hit, given, have
