"""Regression: a number for each row, as the similarity of two sentences in STS-B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.tasks import moments
from weft.tasks.losses import mean_of
from weft.tasks.moments import Moments
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.task import Score, check_one_output, pooled

if TYPE_CHECKING:
    from weft.backbones.run_table import Table

METRICS = ("pearson", "spearman", "r2", "mse")


@dataclass(frozen=True)
class Regression:
    """One number for each row, learnt by its squared error.

    Attributes:
        classes: one name, what the number is called.
        metrics: what is scored, the headline first: the correlations ``pearson`` and ``spearman`` (of ranks), ``r2``, the share
            of the variance that is explained, and ``mse``, the mean squared error, of which less is better.
    """

    samples: ClassVar[int] = 0
    kind: ClassVar[str] = "regression"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("pearson", "spearman", "mse")

    def __post_init__(self) -> None:
        check_one_output(self, "a regression has one output")

    @property
    def head(self) -> Head:
        return Head()

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        numbers = np.zeros(len(table)) if table.numbers is None else table.numbers  # of rows to predict for, nobody has any
        found = np.where(index >= 0, numbers[index], 0.0)
        return torch.from_numpy(found), torch.from_numpy(index >= 0)

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int = 0, beside: Tensor | None = None) -> Tensor:
        """Mean squared error of each client over its valid rows, of which an output has one number: [k]."""
        logits = out.logits
        return mean_of((logits[..., 0] - labels.to(logits.dtype)) ** 2, mask)

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        given = out.logits[:, 0, 0].double()
        return Observed({"given": given.numpy(), "value": labels[:, 0].double().numpy(), "finite": given.isfinite().numpy()})

    def score(self, observed: Observed) -> list[Score]:
        if not len(observed):
            return []
        return [*(self._score(metric, observed) for metric in self.metrics), Score("loss", self._score("mse", observed).value)]

    def headline(self, observed: Observed) -> Score:
        return self._score(self.metrics[0], observed)

    def _score(self, metric: str, observed: Observed) -> Score:
        if not len(observed) or not observed["finite"].all():
            return Score(metric, math.nan)
        if metric == "spearman":
            return Score(metric, moments.of(_ranks(observed["given"]), _ranks(observed["value"])).score("pearson"))
        return Score(metric, self._told(observed).score(metric))

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        if not observed["finite"].all():
            return {"n": len(observed), "loss": None}
        return self._told(observed).as_json(by_class)

    def told(self, metric: str, by_class: bool) -> bool:
        return metric == "mse" or (by_class and metric != "spearman")

    def read(self, told: Mapping[str, Any], by_class: bool) -> Moments:
        return moments.read(told, by_class)

    def pool(self, told: Sequence[Moments]) -> list[Score]:
        return pooled(told, (*self.metrics, "loss"), self._pool)

    def _pool(self, told: Sequence[Moments]) -> list[Score]:
        whole = moments.summed(told)
        known = [metric for metric in self.metrics if self.told(metric, whole.sums is not None)]
        return [*(Score(metric, whole.score(metric)) for metric in known), Score("loss", whole.score("mse"))]

    def _told(self, observed: Observed) -> Moments:
        return moments.of(observed["given"], observed["value"])


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(values)  # equal ones have the mean of their ranks
    return found
