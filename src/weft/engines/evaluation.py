"""Scores: every number says which view, on whose data, at which moment and how pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from weft.data.further import NOVEL
from weft.tasks.task import Score, goodness


@dataclass(frozen=True)
class Evaluation:
    """One number of one evaluation.

    Attributes:
        view: a way to predict, from the method's ``views``.
        people: ``global test``, ``validation``, ``own test``, ``new clients``, or ``common test``: the global test set, for
            models of single clients; a further test set goes by its own name, see :mod:`weft.data.protocols`.
        moment: ``received``: with the newest server state loaded.
        metric: its name, of those that the task has, or ``loss``. The first evaluation of a view has the headline.
        pooling: ``pooled`` (over rows); ``mean over clients``; a word of QUANTILES: of the client at that place, from the worst
            to the best; ``pooled over clients' models``: each row is put to one of them.
        n: rows (or clients) behind it. low, high: a 95 % interval, of shares that are pooled.
    """

    view: str
    people: str
    moment: str
    metric: str
    pooling: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def record(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def records(scores: Sequence[Score], n: int, *, view: str, people: str, pooling: str = "pooled") -> list[Evaluation]:
    """Scores as evaluations, the headline first.

    Args:
        n: rows behind those that tell of none themselves.
    """
    return [
        Evaluation(view, people, "received", s.metric, pooling, s.value, n if s.n is None else s.n, s.low, s.high) for s in scores
    ]


def per_client(own: Mapping[str, Score], metric: str, *, view: str, people: str) -> list[Evaluation]:
    """The mean over clients, the worst, the quartiles and the best, of each client's own headline.

    Args:
        metric: the task's first. Clients that have no score of it, since no text was generated for their rows, are left out,
            unless none has one.
    """
    scores = [score for score in own.values() if score.metric == metric] or list(own.values())
    if not scores:
        return []
    values = [score.value for score in scores]
    common = {"view": view, "people": people, "moment": "received", "metric": scores[0].metric, "n": len(values)}
    ordered = sorted(values, key=lambda value: goodness(scores[0].metric, value))
    found = [Evaluation(pooling="mean over clients", value=float(np.mean(values)), **common)]  # type: ignore[arg-type]
    for word, share in QUANTILES.items():
        one = float(np.quantile(np.arange(len(ordered)), share))  # in the order from the worst to the best
        low, rest = int(one), one - int(one)
        value = ordered[low] if not rest else ordered[low] * (1 - rest) + ordered[low + 1] * rest
        found.append(Evaluation(pooling=word, value=float(value), **common))  # type: ignore[arg-type]
    return found


def both_sides(scores: Sequence[Evaluation]) -> list[Evaluation]:
    """The harmonic mean of one view's headline on classes that were trained on and on those that were not (K. Zhou et al., CVPR
    2022); nothing where there are none of either, or where a headline is below zero. Of a model that diverged it is no number.
    """
    novel = next((e for e in scores if e.people == NOVEL), None)
    base = next((e for e in scores if e.people in ("global test", "common test")), None)
    if novel is None or base is None or min(base.value, novel.value) < 0:
        return []
    total = base.value + novel.value
    value = 0.0 if total == 0 else 2 * base.value * novel.value / total
    return [Evaluation(novel.view, BOTH, novel.moment, novel.metric, "harmonic mean", value, base.n + novel.n)]


BOTH = "base and novel classes"

QUANTILES = {"worst client": 0.0, "first quartile": 0.25, "median client": 0.5, "third quartile": 0.75, "best client": 1.0}
"""Pooling -> share of the clients that are worse."""


def pick(records: list[dict[str, Any]], **wanted: str) -> dict[str, Any] | None:
    """The first record that has all these fields."""
    return next((r for r in records if all(r.get(k) == v for k, v in wanted.items())), None)
