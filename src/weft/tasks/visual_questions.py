"""Visual question answering: of all answers the one that is right, where several may be, each more or less so.

S. Antol et al., "VQA: Visual Question Answering", ICCV 2015, arXiv 1505.00468. The loss is that of ViLT (W. Kim et al., ICML
2021, arXiv 2102.03334) and FedDAT: binary cross-entropy with soft targets, summed over the answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from weft.communication.strict import Refused, is_number
from weft.errors import UserError, nearest
from weft.tasks.classification import wilson
from weft.tasks.counts import LARGEST
from weft.tasks.losses import mean_of
from weft.tasks.observed import Observed
from weft.tasks.one_class import OneClass
from weft.tasks.outputs import Output
from weft.tasks.summed import OfLoss, Summed
from weft.tasks.task import Score

METRICS = ("vqa_accuracy", "accuracy")
SLACK = 1e-6  # of rounding in the sums


@dataclass(frozen=True)
class Agreement(OfLoss):
    """What a site says of n questions.

    Attributes:
        soft: the sum of how right the given answers are. right: those that are the best answer.
        loss: the sum of the rows' losses, not finite where outputs are not.
    """

    n: int
    soft: float
    right: int
    loss: float


@dataclass(frozen=True)
class VisualQuestions(OneClass, Summed[Agreement]):
    """An answer to each question about a picture.

    Attributes:
        classes: the answers, in index order.
        metrics: what is scored, the headline first: ``vqa_accuracy``, the mean of how right the given answers are by those who
            were asked (where one alone was, it is the accuracy), and ``accuracy``, the share that is the best answer.

    Raises:
        UserError: there is no such metric.
    """

    samples: ClassVar[int] = 0
    kind: ClassVar[str] = "vqa"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(f'unknown metric "{metric}": use {", ".join(METRICS)}.{nearest(metric, METRICS)}')

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int = 0, beside: Tensor | None = None) -> Tensor:
        """Σ over answers of the binary cross-entropy with how right each is, the mean over each client's valid rows: [k].

        Args:
            beside: [k, b, C], how right each answer is; None = the label is, and no other.
        """
        if beside is None:
            return mean_of(out.each(_one_right, labels), mask)
        return mean_of(out.each(_soft, beside), mask)

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        z, y = out.logits[:, 0].double(), labels[:, 0]
        given = z.argmax(1)
        right = given == y
        soft = right.double() if beside is None else beside.double().gather(1, given.unsqueeze(1))[:, 0]
        loss = _one_right(z, y) if beside is None else _soft(z, beside.double())
        columns = {"given": given, "label": y, "soft": soft, "right": right, "loss": loss, "finite": z.isfinite().all(1)}
        return Observed({name: column.numpy() for name, column in columns.items()})

    def read(self, told: Mapping[str, Any], by_class: bool) -> Agreement:
        return read(told)

    def _told(self, observed: Observed) -> Agreement:
        n = len(observed)
        if not observed["finite"].all():
            return Agreement(n, math.nan, 0, math.nan)
        return Agreement(n, math.fsum(observed["soft"]), int(observed["right"].sum()), math.fsum(observed["loss"]))

    def _added(self, told: Sequence[Agreement]) -> Agreement:
        n, right = (sum(getattr(one, name) for one in told) for name in ("n", "right"))
        soft, loss = (math.fsum(getattr(one, name) for one in told) for name in ("soft", "loss"))
        return Agreement(n, soft, right, loss)

    def _score(self, metric: str, told: Agreement, interval: bool = True) -> Score:
        if told.blank:
            return Score(metric, math.nan)
        if metric == "loss":
            return Score(metric, told.loss / told.n)
        hits = told.soft if metric == "vqa_accuracy" else told.right
        return Score(metric, hits / told.n, *(wilson(round(hits), told.n) if interval else ()))


def _one_right(z: Tensor, y: Tensor) -> Tensor:
    return F.softplus(z).sum(-1) - z.gather(-1, y.unsqueeze(-1))[:, 0]


def _soft(z: Tensor, votes: Tensor) -> Tensor:
    return (F.softplus(z) - z * votes.to(z)).sum(-1)


def read(told: Mapping[str, Any]) -> Agreement:
    """What a stranger says.

    Raises:
        Refused: these are no scores.
    """
    n, soft, right, loss = (told.get(key) for key in ("n", "soft", "right", "loss"))
    _check(is_number(n, int) and 0 < n < LARGEST)  # type: ignore[operator]
    assert isinstance(n, int)
    if loss is None:
        return Agreement(n, math.nan, 0, math.nan)
    _check(is_number(soft, int, float) and is_number(right, int) and is_number(loss, int, float))
    assert isinstance(soft, int | float) and isinstance(right, int) and isinstance(loss, int | float)
    _check(0 <= right <= n and -SLACK <= soft <= n * (1 + SLACK) and 0 <= loss < LARGEST)
    return Agreement(n, min(max(float(soft), 0.0), float(n)), right, float(loss))


def _check(fits: Any) -> None:
    if not fits:
        raise Refused("The sums are not those of a test of questions about pictures.")
