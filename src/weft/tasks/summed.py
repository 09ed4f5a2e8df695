"""What tasks share whose scores are made of sums over rows: here, at sites, and of all sites together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from weft.tasks.observed import Observed
from weft.tasks.task import Score, pooled


class Sums(Protocol):
    """Sums over n rows; blank where outputs were not finite."""

    @property
    def n(self) -> int: ...
    @property
    def blank(self) -> bool: ...
    def as_json(self) -> dict[str, Any]: ...


class OfLoss:
    """To be put before a dataclass of sums over n rows, one of which is that of their losses."""

    n: int
    loss: float

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)

    def as_json(self) -> dict[str, Any]:
        """JSON has no word for the loss of a model that has diverged."""
        if self.blank:
            return {"n": self.n, "loss": None}
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in vars(self).items()}


S = TypeVar("S", bound=Sums)


class Summed(Generic[S]):
    """To be put before a task that says how rows are summed, sums are added, and what a metric makes of them."""

    metrics: tuple[str, ...]

    def _told(self, observed: Observed) -> S:
        raise NotImplementedError

    def _added(self, told: Sequence[S]) -> S:
        raise NotImplementedError

    def _score(self, metric: str, told: S, interval: bool = True) -> Score:
        raise NotImplementedError

    def score(self, observed: Observed) -> list[Score]:
        return self.pool([self._told(observed)]) if len(observed) else []

    def headline(self, observed: Observed) -> Score:
        told = self._told(observed)
        return self._score(self.metrics[0], told, interval=False) if told.n else Score(self.metrics[0], math.nan)

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        return self._told(observed).as_json()

    def told(self, metric: str, by_class: bool) -> bool:
        return True

    def pool(self, told: Sequence[S]) -> list[Score]:
        every = (*self.metrics, "loss")
        return pooled(told, every, lambda some: [self._score(metric, self._added(some)) for metric in every])
