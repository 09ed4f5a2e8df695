"""What an attack has found, in one form for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONFIDENCE = 0.95
"""Of every lower bound, one-sided."""


@dataclass(frozen=True)
class Outcome:
    """What one attack has found on one target.

    Attributes:
        attack: its name. target: what was attacked, in a few words. measure: what the score is.
        score: more is worse for whoever is attacked. chance: what somebody scores who has seen nothing of the target.
        n: of how many rows, tokens, clients or pictures.
        low: what the score is at least, for all that luck may have done: a 95 % lower bound; None = the score itself.
        sentence: what that means. about: further numbers by name.
        most: what somebody scores who has learnt everything; None = there is no such end.
    """

    attack: str
    target: str
    measure: str
    score: float
    chance: float
    n: int
    low: float | None
    sentence: str
    about: Mapping[str, Any] = field(default_factory=dict)
    most: float | None = 1.0

    @property
    def found(self) -> bool:
        """Whether the score is above chance by more than luck."""
        return (self.score if self.low is None else self.low) > self.chance

    def record(self) -> dict[str, Any]:
        """As JSON, in which a score that is no number is null."""
        whole = {name: getattr(self, name) for name in ("attack", "target", "measure", "score", "chance", "most", "n", "low")}
        return _finite(whole) | {"found": self.found, "sentence": self.sentence, "about": _finite(self.about)}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def lowest_share(hits: int, n: int) -> float:
    """Lower bound of a share, 95 %, one-sided (Clopper & Pearson, Biometrika 1934)."""
    from scipy.stats import binomtest

    if not n:
        return 0.0
    return float(binomtest(hits, n, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low)
