"""Preference: of two answers to a prompt the better one, learnt by direct preference optimisation (DPO).

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023, arXiv 2305.18290;
among federated clients as the value alignment of OpenFedLLM (Ye et al., KDD 2024, arXiv 2402.06954).

The implicit reward of an answer is r(x, y) = β (log π(y|x) − log π_ref(y|x)), of the summed log-probabilities of its tokens, and
the loss of a row is −log σ(r(x, y_w) − r(x, y_l)). The reference π_ref is the frozen backbone, without any part of any method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from weft.adaptation.head import Head
from weft.backbones.preference_table import Preferences
from weft.tasks import choices
from weft.tasks.choices import Choices
from weft.tasks.classification import wilson
from weft.tasks.losses import mean_of
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.summed import Summed
from weft.tasks.task import Score, check_one_output
from weft.typed import Positive, check

if TYPE_CHECKING:
    from weft.backbones.run_table import Table

METRICS = ("reward_accuracy", "reward_margin")
TIE = 1e-5
"""Of the log-probabilities that a margin is the difference of: what is smaller may be their rounding (in single precision)."""


@dataclass(frozen=True)
class Preference(Summed[Choices]):
    """The chosen one of two answers, told by what a model has learnt about each.

    Attributes:
        classes: one name, what is compared.
        metrics: what is scored, the headline first: ``reward_accuracy``, the share of rows whose chosen answer has the larger
            implicit reward, and ``reward_margin``, the mean of the difference. A tie, as every row is before anything was learnt,
            is not won.
        beta: β; the larger, the closer a model stays to the reference.

    Raises:
        UserError: there is no such metric, or a value is out of its range.
    """

    samples: ClassVar[int] = 0
    kind: ClassVar[str] = "preference"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS
    beta: Positive = 0.1

    def __post_init__(self) -> None:
        check(self)
        check_one_output(self, "preference compares answers of one kind")

    @property
    def head(self) -> Head:
        return Head()

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens of both answers: m is b · 2 · p."""
        assert isinstance(table, Preferences)
        labels, mask = table.targets(index.reshape(-1))
        return labels.view(len(index), -1), mask.view(len(index), -1)

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int, beside: Tensor | None = None) -> Tensor:
        """Mean of −log σ(margin) of each client over its rows: [k].

        Args:
            beside: [k, b, 2], log π_ref of both answers.
        """
        assert beside is not None
        each = (out.cross_entropy(labels) * mask).unflatten(1, (rows, 2, -1)).sum(-1)
        valid = mask.unflatten(1, (rows, -1)).any(-1)
        return mean_of(-F.logsigmoid(self._margin(-each, beside.to(each.dtype))), valid)

    def _margin(self, own: Tensor, reference: Tensor) -> Tensor:
        """Reward of the chosen answer less that of the rejected one, [..., 2] each -> [...]."""
        reward = self.beta * (own - reference)
        return reward[..., 0] - reward[..., 1]

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        assert beside is not None
        each = out.cross_entropy(labels).detach().cpu().double().masked_fill(~mask.cpu(), 0.0).unflatten(1, (2, -1)).sum(-1)
        margin = self._margin(-each, beside.double())
        return Observed(
            {
                "margin": margin.numpy(),
                "won": (margin > TIE * self.beta * each.sum(-1)).numpy(),
                "loss": -F.logsigmoid(margin).numpy(),
                "finite": margin.isfinite().numpy(),
            }
        )

    def read(self, told: Mapping[str, Any], by_class: bool) -> Choices:
        return choices.read(told)

    def _told(self, observed: Observed) -> Choices:
        if not observed["finite"].all():
            return Choices(len(observed), 0, math.nan, math.nan)
        sums = (math.fsum(observed[name]) for name in ("margin", "loss"))
        return Choices(len(observed), int(observed["won"].sum()), *sums)

    def _added(self, told: Sequence[Choices]) -> Choices:
        return choices.summed(told)

    def _score(self, metric: str, told: Choices, interval: bool = True) -> Score:
        if told.blank:
            return Score(metric, math.nan)
        if metric == "reward_accuracy":
            return Score(metric, told.won / told.n, *(wilson(told.won, told.n) if interval else ()))
        return Score(metric, (told.margin if metric == "reward_margin" else told.loss) / told.n)
