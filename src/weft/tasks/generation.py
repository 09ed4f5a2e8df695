"""Generation: an answer in words, as a language model writes it after a prompt, or out of an encoded text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.adaptation.head import Head
from weft.backbones.reply_table import Replies
from weft.tasks import judging, passages
from weft.tasks.classification import wilson
from weft.tasks.generation_settings import Decoding
from weft.tasks.losses import mean_of
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.passages import Passages
from weft.tasks.task import Score, check_one_output, pooled
from weft.typed import Whole, check

if TYPE_CHECKING:
    from weft.backbones.run_table import Table

METRICS = ("perplexity", "token_accuracy", *judging.TEXT)


@dataclass(frozen=True)
class Generation:
    """The tokens of an answer, each predicted from what stands before it.

    Attributes:
        classes: one name, what is generated.
        metrics: what is scored, the headline first: ``perplexity``, of which less is better, and ``token_accuracy``, the share of
            tokens that are the likeliest after the answer's own beginning, over all rows; of generated texts those of
            :func:`weft.tasks.judging.judge`, which no evaluation has for which no text was written.
        average: what the loss of a step is the mean of: all ``tokens`` of its answers, as in transformers, or its ``examples``,
            each the mean of its own tokens, so that long answers weigh no more than short ones.
        samples: rows of an evaluation for which a text is generated; 0 = none.
        decoding: how it is.

    Raises:
        UserError: there is no such metric, or a value is out of its range.
    """

    kind: ClassVar[str] = "generation"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("perplexity", "token_accuracy", "rouge_l")
    average: Literal["tokens", "examples"] = "tokens"
    samples: Whole = 32
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        check(self)
        check_one_output(self, "generation has one kind of answer")

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """Those of the metrics that are of generated texts."""
        return tuple(metric for metric in self.metrics if metric in judging.TEXT)

    @property
    def head(self) -> Head:
        return Head()

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        assert isinstance(table, Replies)
        labels, mask = table.targets(index.reshape(-1))
        return labels.view(len(index), -1), mask.view(len(index), -1)

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int, beside: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood (nats) of each client over its answers: [k, m], [k, m] bool -> [k].

        Args:
            rows: b, of which each has m / b places next to each other.
        """
        each = out.cross_entropy(labels)
        if self.average == "tokens":
            return mean_of(each, mask)
        valid = mask.unflatten(1, (rows, -1))
        by_row = mean_of(each.unflatten(1, (rows, -1)).flatten(0, 1), valid.flatten(0, 1)).view(-1, rows)
        return mean_of(by_row, valid.any(-1))

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        signed, valid = out.each(_signed_loss, labels).cpu().double(), mask.cpu()
        return Observed(
            {
                "nll": signed.abs().masked_fill(~valid, 0.0).sum(1).numpy(),
                "tokens": valid.sum(1).numpy(),
                "right": (~signed.signbit() & valid).sum(1).numpy(),
                "finite": (signed.isfinite() | ~valid).all(1).numpy(),
            }
        )

    def judge(self, given: Sequence[str], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """A column of each text metric: see :func:`weft.tasks.judging.judge`."""
        return judging.judge(self.text_metrics, given, wanted)

    def with_texts(self, observed: Observed, chosen: np.ndarray, given: Sequence[str], wanted: Sequence[str]) -> Observed:
        """Rows with the texts that were generated for some of them, and how good these are.

        All rows of an evaluation go through this, or none: tables of different columns can't be put together.

        Args:
            chosen: bool [n], of how many texts there are. given, wanted: in the order of the rows, one for each that is chosen.
        """
        columns: dict[str, np.ndarray] = {"written": np.asarray(chosen, dtype=bool)}
        texts = np.empty(len(given), dtype=object)
        texts[:] = list(given)
        for name, column in (self.judge(given, wanted) | {"text": texts}).items():
            columns[name] = np.full((len(observed), *column.shape[1:]), "" if name == "text" else 0, dtype=column.dtype)
            columns[name][columns["written"]] = column
        return replace(observed, columns=dict(observed.columns) | columns)

    def score(self, observed: Observed) -> list[Score]:
        return self.pool([self._told(observed)]) if len(observed) else []

    def headline(self, observed: Observed) -> Score:
        """The first metric that there is: one of tokens, or the loss, where the first of all is of texts and none was written."""
        told = self._told(observed)
        metric = self._scored(told.written)[0]
        return _score(metric, told, interval=False) if told.n and not told.blank else Score(metric, math.nan)

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        return self._told(observed).as_json()

    def told(self, metric: str, by_class: bool) -> bool:
        return True

    def read(self, told: Mapping[str, Any], by_class: bool) -> Passages:
        return passages.read(told, self.text_metrics)

    def pool(self, told: Sequence[Passages]) -> list[Score]:
        return pooled(told, self._scored(sum(one.written for one in told)), self._pool)

    def _pool(self, told: Sequence[Passages]) -> list[Score]:
        whole = passages.summed(told)
        return [_score(metric, whole) for metric in self._scored(whole.written)]

    def _scored(self, written: int) -> list[str]:
        """What is scored where so many texts were written."""
        return [*(metric for metric in self.metrics if written or metric not in judging.TEXT), "loss"]

    def _told(self, observed: Observed) -> Passages:
        finite = bool(observed["finite"].all())
        written = int(observed["written"].sum()) if "written" in observed.columns else 0
        return Passages(
            n=len(observed),
            tokens=int(observed["tokens"].sum()),
            right=int(observed["right"].sum()),
            loss=math.fsum(observed["nll"]) if finite else math.nan,
            written=written,
            sums={m: tuple(np.atleast_1d(observed[m].sum(0)).tolist()) for m in self.text_metrics} if written else {},
        )


def _signed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss [r] of [r, C] and [r], with a minus where the label is not the likeliest: one pass over the logits tells both."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # which has no float64
    each = F.cross_entropy(logits.to(wide), labels, reduction="none").abs()  # that of a certain label is -0.0
    return torch.where(logits.argmax(-1) == labels, each, -each)


def _score(metric: str, told: Passages, interval: bool = True) -> Score:
    """One score of texts, or of tokens."""
    value = told.score(metric)
    if metric not in judging.TEXT:
        return Score(metric, value)
    low, high = wilson(int(told.sums[metric][0]), told.written) if interval and metric in judging.HITS else (None, None)
    return Score(metric, value, low, high, told.written)
