"""Single-label classification: head, loss with a client axis, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.errors import UserError, nearest
from weft.tasks import counts
from weft.tasks.counts import Counts
from weft.tasks.observed import Observed
from weft.tasks.one_class import OneClass
from weft.tasks.outputs import Output
from weft.tasks.task import Score, pooled

if TYPE_CHECKING:
    pass

METRICS = ("accuracy", "macro_f1", "matthews", "f1", "top5")


@dataclass(frozen=True)
class Classification(OneClass):
    """One class for each row.

    Attributes:
        classes: names of the labels, in index order.
        metrics: what is scored, the headline first: ``accuracy``, ``macro_f1`` (over labels that occur), ``matthews``, ``top5``,
            and ``f1:NAME``, of the class NAME alone.
    """

    samples: ClassVar[int] = 0
    kind: ClassVar[str] = "classification"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")

    def __post_init__(self) -> None:
        for metric in self.metrics:
            name, _, of = metric.partition(":")
            if name not in METRICS or (name == "f1") != bool(of):
                raise UserError(
                    f'unknown metric "{metric}": use {", ".join(METRICS[:-2])}, top5 or f1:CLASS.{nearest(name, METRICS)}'
                )
            if of and of not in self.classes:
                raise UserError(
                    f'metric "{metric}" is of the class "{of}", which the data do not have.{nearest(of, self.classes)}'
                )

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        z, y = out.logits[:, 0], labels[:, 0]
        true = z.gather(1, y.unsqueeze(1))
        return Observed(
            {
                "label": y.numpy(),
                "given": z.argmax(1).numpy(),
                "above": (z > true).sum(1).numpy(),  # classes that are more likely than the row's own
                "loss": F.cross_entropy(z.double(), y, reduction="none").numpy(),
                "finite": z.isfinite().all(1).numpy(),
            }
        )

    def score(self, observed: Observed) -> list[Score]:
        n = len(observed)
        if not n:
            return []
        if not observed["finite"].all():
            return [Score(metric, math.nan) for metric in (*self.metrics, "loss")]
        told = self._counts(observed, by_class=True)
        found = [self._score(metric, told) for metric in self.metrics]
        return [*found, Score("loss", _summed(observed["loss"], "mean"))]

    def headline(self, observed: Observed) -> Score:
        metric = self.metrics[0]
        if not len(observed) or not observed["finite"].all():
            return Score(metric, math.nan)
        return self._score(metric, self._counts(observed, by_class=True), interval=False)

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        if not observed["finite"].all():
            return Counts(len(observed), 0, math.nan).as_json()
        return self._counts(observed, by_class).as_json()

    def told(self, metric: str, by_class: bool) -> bool:
        return by_class or metric in ("accuracy", "top5")

    def read(self, told: Mapping[str, Any], by_class: bool) -> Counts:
        return counts.read(told, len(self.classes) if by_class else 0, "top5" in self.metrics)

    def pool(self, told: Sequence[Counts]) -> list[Score]:
        return pooled(told, (*self.metrics, "loss"), self._pool)

    def _pool(self, told: Sequence[Counts]) -> list[Score]:
        n = sum(a.n for a in told)
        by_class = [a.classes for a in told if a.classes is not None]
        whole = Counts(
            n,
            sum(a.right for a in told),
            sum(a.loss for a in told),
            tuple(map(tuple, counts.summed(by_class).astype(int).tolist())) if len(by_class) == len(told) else None,
            sum(a.top5 or 0 for a in told) if "top5" in self.metrics else None,
        )
        found = [self._score(metric, whole) for metric in self.metrics if self.told(metric, whole.classes is not None)]
        return [*found, Score("loss", whole.loss / n)]

    def _counts(self, observed: Observed, by_class: bool) -> Counts:
        label, given = observed["label"], observed["given"]
        right = given == label
        table = None
        if by_class:
            each = [np.bincount(some, minlength=len(self.classes)).tolist() for some in (given[right], given, label)]
            table = tuple(zip(*each, strict=True))
        top5 = int((observed["above"] < 5).sum()) if "top5" in self.metrics else None
        return Counts(len(label), int(right.sum()), _summed(observed["loss"], "sum"), table, top5)

    def _score(self, metric: str, told: Counts, interval: bool = True) -> Score:
        """One metric of counts that tell it."""
        hits = {"accuracy": told.right, "top5": told.top5}.get(metric)
        if hits is not None:
            return Score(metric, hits / told.n, *(wilson(hits, told.n) if interval else ()))
        table = np.asarray(told.classes, dtype=np.float64)
        if metric == "macro_f1":
            return Score(metric, counts.macro_f1(table))
        if metric == "matthews":
            return Score(metric, counts.matthews(table))
        one = self.classes.index(metric.removeprefix("f1:"))
        return Score(metric, float(np.nan_to_num(counts.f1_of(table)[one])))


def _summed(losses: np.ndarray, how: str) -> float:
    """As PyTorch adds them up where it has all logits at once, to the last digit."""
    one = torch.from_numpy(-losses).unsqueeze(1)
    return float(F.nll_loss(one, torch.zeros(len(losses), dtype=torch.int64), reduction=how))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """A 95 % interval of a share (Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def observed_of(task: Classification, logits: Tensor, labels: np.ndarray) -> Observed:
    """What is kept of logits [n, C] and labels [n] that lie ready."""
    y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return task.observe(Output(logits.unsqueeze(1)), y.unsqueeze(1), torch.ones(len(y), 1, dtype=torch.bool))
