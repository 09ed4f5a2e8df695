"""Next item: of all items of a domain, the one that comes next in a sequence; scored by full rankings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from weft.errors import UserError, nearest
from weft.tasks import ranks
from weft.tasks.classification import wilson
from weft.tasks.observed import Observed
from weft.tasks.one_class import OneClass
from weft.tasks.outputs import Output
from weft.tasks.ranks import Ranks
from weft.tasks.summed import Summed
from weft.tasks.task import Score

if TYPE_CHECKING:
    pass

METRICS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50")


@dataclass(frozen=True)
class NextItem(OneClass, Summed[Ranks]):
    """The item behind a sequence, ranked among all items of its domain: none is left out, not even those of the sequence.

    The items of other domains are masked where a loss is taken and where rows are scored; there is no item for padding.

    Attributes:
        classes: the items of all domains, in index order.
        metrics: what is scored, the headline first: ``recall@K`` and ``ndcg@K`` for any K, see :func:`weft.tasks.ranks.gains`.

    Raises:
        UserError: there is no such metric.
    """

    samples: ClassVar[int] = 0
    kind: ClassVar[str] = "next-item"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if ranks.split(metric) is None:
                near = nearest(metric.partition("@")[0], ranks.NAMES)
                raise UserError(f'unknown metric "{metric}": use recall@K or ndcg@K, such as {", ".join(METRICS)}.{near}')

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        z, y = out.logits[:, 0], labels[:, 0]
        true = z.gather(1, y.unsqueeze(1))
        return Observed(
            {
                "above": (z > true).sum(1).numpy(),
                "tied": (z == true).sum(1).clamp(min=1).numpy() - 1,
                "loss": F.cross_entropy(z.double(), y, reduction="none").numpy(),
                "finite": z.isfinite().all(1).numpy(),
            }
        )

    def read(self, told: Mapping[str, Any], by_class: bool) -> Ranks:
        return ranks.read(told, self.metrics)

    def _told(self, observed: Observed) -> Ranks:
        if not observed["finite"].all():
            return Ranks(len(observed), math.nan)
        sums = {m: math.fsum(ranks.gains(m, observed["above"], observed["tied"])) for m in self.metrics}
        return Ranks(len(observed), math.fsum(observed["loss"]), sums)

    def _added(self, told: Sequence[Ranks]) -> Ranks:
        return ranks.summed(told, self.metrics)

    def _score(self, metric: str, told: Ranks, interval: bool = True) -> Score:
        if told.blank:
            return Score(metric, math.nan)
        if metric == "loss":
            return Score(metric, told.loss / told.n)
        total = told.sums[metric]
        share = interval and metric.startswith("recall")
        return Score(metric, total / told.n, *(wilson(min(max(round(total), 0), told.n), told.n) if share else ()))
