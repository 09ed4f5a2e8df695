"""The contract of a task: what is predicted, what a model's output costs, and how good it is.

A thing to predict has a label and a place in a row: a classifier predicts one thing for each row, a tagger one for each token. A
pack sees things alone, [k, m] of them; a task sees them by row again when it scores, [b, p, …] of p places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from weft.adaptation.part import Part
    from weft.backbones.run_table import Table
    from weft.tasks.observed import Observed
    from weft.tasks.outputs import Output


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        metric: its name.
        low, high: a 95 % interval; None where there is none.
        n: rows behind it; None = all that were scored.
    """

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


LESS_IS_BETTER = frozenset({"perplexity", "mse", "loss"})


def goodness(metric: str, value: float | None) -> float:
    """A number that is the larger, the better a metric's value is; what is no number is worse than anything.

    Whoever asks which round is the best, or which client is the worst, asks this.
    """
    if value is None or math.isnan(value):
        return -math.inf
    return -value if metric in LESS_IS_BETTER else value


class Told(Protocol):
    """What a client says of its own test rows.

    Attributes:
        n: how many.
        blank: its outputs are not finite, and the rest means nothing.
    """

    @property
    def n(self) -> int: ...

    @property
    def blank(self) -> bool: ...


class Task(Protocol):
    """One kind of prediction.

    Attributes:
        kind: its name in settings and files.
        known: all metrics that it can be scored by, ``f1`` for all of the form ``f1:X``.
        classes: names of the labels, in index order.
        metrics: names of the scores, the headline first, without the loss.
    """

    kind: ClassVar[str]
    known: ClassVar[tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def samples(self) -> int:
        """Rows of an evaluation for which text is generated; 0 = this task writes none."""
        ...

    @property
    def head(self) -> Part:
        """The part that makes logits, where a model's own is new."""
        ...

    def targets(self, table: Table, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Labels and mask [k, m] of what is to be predicted in the rows ``index`` ([k, b]; -1 = padding) of a table.

        m is b · p: the places of one row lie next to each other, as the model gives their logits.
        """
        ...

    def loss(self, out: Output, labels: Tensor, mask: Tensor, rows: int, beside: Tensor | None = None) -> Tensor:
        """Mean loss of each client over what it has to predict, [k].

        Args:
            out: of m things for each of k clients. labels, mask: of :meth:`targets`.
            rows: b, of which each has m / b places next to each other.
            beside: [k, b, …], what the table says of the rows beside their labels; None = nothing.
        """
        ...

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        """What is kept of b rows with p places each.

        Args:
            out: of p places for each of b rows. labels, mask: [b, p]. beside: [b, …], as of :meth:`loss`.
        """
        ...

    def score(self, observed: Observed) -> list[Score]:
        """The scores of rows, the headline first; all NaN where an output is not finite, and none of no rows."""
        ...

    def headline(self, observed: Observed) -> Score:
        """The first score of some rows alone, without its interval."""
        ...

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        """What a site says of its rows: strict JSON, sums alone.

        Args:
            by_class: with counts for each class, which tell a histogram of the labels.
        """
        ...

    def told(self, metric: str, by_class: bool) -> bool:
        """Whether what sites tell is enough for a metric."""
        ...

    def read(self, told: Mapping[str, Any], by_class: bool) -> Told:
        """What a stranger says.

        Raises:
            Refused: it can't be true.
        """
        ...

    def pool(self, told: Sequence[Any]) -> list[Score]:
        """The scores of all rows together that clients tell of; those of blank ones are left out.

        Args:
            told: by :meth:`read`.
        """
        ...


T = TypeVar("T", bound=Told)


def pooled(told: Sequence[T], metrics: Sequence[str], score: Callable[[Sequence[T]], list[Score]]) -> list[Score]:
    """What :meth:`Task.pool` gives: ``score`` of whoever is not blank, NaN for each metric if all are, nothing of no rows."""
    finite = [one for one in told if not one.blank]
    if told and not finite:
        return [Score(metric, math.nan) for metric in metrics]
    return score(finite) if sum(one.n for one in finite) else []


def check_one_output(task: Task, what: str) -> None:
    """Refuse what a task without classes can't have.

    Args:
        what: it has one of.

    Raises:
        UserError: several classes, or a metric that it does not know.
    """
    if len(task.classes) != 1:
        raise UserError(f"{what}, and {len(task.classes)} classes are declared: give its name alone.")
    for metric in task.metrics:
        if metric not in task.known:
            raise UserError(f'unknown metric "{metric}": use {", ".join(task.known)}.{nearest(metric, task.known)}')
