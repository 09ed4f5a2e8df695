"""Scores: every number says which view, on whose data, at which moment and how pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """One number of one evaluation.

    Attributes:
        view: a way to predict, from the method's ``views``.
        people: ``global test``, ``validation``, ``own test``, ``new clients``, or ``common test``: the global test set, for
            models of single clients.
        moment: ``received``: with the newest server state loaded.
        metric: ``accuracy``, ``macro_f1`` or ``loss``.
        pooling: ``pooled`` (over rows), ``mean over clients`` or ``worst client``; ``pooled over clients' models``: each
            row is put to one of them.
        n: rows (or clients) behind it. low, high: 95 % Wilson interval of a pooled accuracy.
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


def wilson(correct: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(logits: Tensor, labels: np.ndarray) -> float:
    """Share of right answers, of logits [n, C] and labels [n]; NaN where logits are not finite, whose largest is any class."""
    if not bool(torch.isfinite(logits).all()):
        return math.nan
    return float((logits.argmax(1).numpy() == labels).mean())


def score(logits: Tensor, labels: np.ndarray, *, view: str, people: str, moment: str = "received") -> list[Evaluation]:
    """Accuracy with interval, macro-F1 (over labels that occur) and mean loss over pooled rows, [n, C] and [n].

    All are NaN where logits are not finite.
    """
    from sklearn.metrics import f1_score

    if not len(labels):
        return []
    if not bool(torch.isfinite(logits).all()):
        return _nothing({"view": view, "people": people, "moment": moment, "pooling": "pooled", "n": len(labels)})
    y = torch.from_numpy(labels)
    hit = int((logits.argmax(1) == y).sum())
    low, high = wilson(hit, len(y))
    common = {"view": view, "people": people, "moment": moment, "pooling": "pooled", "n": len(y)}
    loss = float(torch.nn.functional.cross_entropy(logits.double(), y))
    macro = float(f1_score(labels, logits.argmax(1).numpy(), average="macro", labels=np.unique(labels), zero_division=0))
    return [
        Evaluation(metric="accuracy", value=hit / len(y), low=low, high=high, **common),  # type: ignore[arg-type]
        Evaluation(metric="macro_f1", value=macro, **common),  # type: ignore[arg-type]
        Evaluation(metric="loss", value=loss, **common),  # type: ignore[arg-type]
    ]


def _nothing(common: dict[str, Any]) -> list[Evaluation]:
    return [Evaluation(metric=metric, value=math.nan, **common) for metric in ("accuracy", "macro_f1", "loss")]


@dataclass(frozen=True)
class Answers:
    """What a client says of its own test: right answers of n, and the sum of the rows' losses, which is not finite where its
    logits are not.

    Attributes:
        classes: where the experiment asks for it, of each class how many rows were rightly given it, how many were given it,
            and how many have it.
    """

    n: int
    right: int
    loss: float
    classes: tuple[tuple[int, int, int], ...] | None = None

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)


def answers(logits: Tensor, labels: np.ndarray, by_class: bool = False) -> Answers:
    """Of logits [n, C] and labels [n].

    Args:
        by_class: counts for each class too, which tell a histogram of the labels.
    """
    if not bool(torch.isfinite(logits).all()):
        return Answers(len(labels), 0, math.nan)
    y = torch.from_numpy(np.asarray(labels))
    loss = float(torch.nn.functional.cross_entropy(logits.double(), y, reduction="sum"))
    given = logits.argmax(1)
    right = given == y
    if not by_class:
        return Answers(len(y), int(right.sum()), loss)
    counts = [torch.bincount(some, minlength=logits.shape[1]).tolist() for some in (given[right], given, y)]
    return Answers(len(y), int(right.sum()), loss, tuple(zip(*counts, strict=True)))


def pooled(said: list[Answers], *, view: str, people: str) -> list[Evaluation]:
    """Accuracy with interval and mean loss over all rows of clients that keep their answers to themselves; those whose logits are
    not finite are left out, and where nobody else is there it is NaN.
    """
    finite = [a for a in said if not a.blank]
    if said and not finite:
        return _nothing({"view": view, "people": people, "moment": "received", "pooling": "pooled", "n": sum(a.n for a in said)})
    said = finite
    n, right = sum(a.n for a in said), sum(a.right for a in said)
    if not n:
        return []
    low, high = wilson(right, n)
    common = {"view": view, "people": people, "moment": "received", "pooling": "pooled", "n": n}
    told = [a.classes for a in said if a.classes is not None]
    return [
        Evaluation(metric="accuracy", value=right / n, low=low, high=high, **common),  # type: ignore[arg-type]
        *([Evaluation(metric="macro_f1", value=macro_f1(told), **common)] if len(told) == len(said) else []),  # type: ignore[arg-type]
        Evaluation(metric="loss", value=sum(a.loss for a in said) / n, **common),  # type: ignore[arg-type]
    ]


def macro_f1(told: Sequence[Sequence[tuple[int, int, int]]]) -> float:
    """The mean of 2 right / (given + have) over classes that occur, of each client's :attr:`Answers.classes` added up."""
    summed = [[sum(counts) for counts in zip(*one_class, strict=True)] for one_class in zip(*told, strict=True)]
    return float(np.mean([2 * right / (given + have) for right, given, have in summed if have]))


def per_client(accuracies: Mapping[str, float], *, view: str, people: str, moment: str = "received") -> list[Evaluation]:
    """Mean over clients and the worst client, of each client's own accuracy."""
    if not accuracies:
        return []
    values = list(accuracies.values())
    common = {"view": view, "people": people, "moment": moment, "metric": "accuracy", "n": len(values)}
    return [
        Evaluation(pooling="mean over clients", value=float(np.mean(values)), **common),  # type: ignore[arg-type]
        Evaluation(pooling="worst client", value=float(np.min(values)), **common),  # type: ignore[arg-type]
    ]


def pick(records: list[dict[str, Any]], **wanted: str) -> dict[str, Any] | None:
    """The first record that has all these fields."""
    return next((r for r in records if all(r.get(k) == v for k, v in wanted.items())), None)
