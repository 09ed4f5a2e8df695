"""What the rules are for: clients of different labels, many local steps, and a mean of models that stops short of the minimum."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch

import by_hand
import ruled
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.federation.info import MethodInfo
from weft.federation.tuned import Tuned

DECAY = 0.02


class HeadAlone(Tuned):
    """A linear head on frozen features, whose loss is convex."""

    info: ClassVar[MethodInfo] = MethodInfo(slug="head", title="Head", paper="none", family="selective", sends="the head")
    tune: Tune = Tune("head")
    optim: Optim = Optim("sgd", lr=0.3, weight_decay=DECAY, schedule="constant")


@functools.cache
def left(word: str | None, rounds: int, alpha: float | None = None) -> float:
    """The norm of the gradient of the mean loss after so many rounds of 12 local steps on all rows."""
    settings: dict[str, Any] = {} if alpha is None else {"feddyn_alpha": alpha}
    method = HeadAlone(batch=16, steps=12, weighting="uniform")
    run = ruled.federation(method, word, rounds, settings, sizes=(6, 6, 6), prefix=True, participation=1.0).run()
    x = by_hand.shared(run)
    each = {k: ruled.slopes(run, x, c.data.train, 1.0) for k, c in enumerate(run.clients)}
    total = ruled.mean(each, ruled.weights([1, 1, 1], range(3), True))
    return float(torch.stack([(g + DECAY * x[n]).square().sum() for n, g in total.items()]).sum().sqrt())


@pytest.mark.parametrize(
    ("word", "rounds", "alpha", "share"), [("scaffold", 40, None, 0.05), ("feddyn", 40, 0.3, 0.3), ("mime", 80, None, 0.01)]
)
def test_what_averaging_leaves_of_the_gradient_the_rule_takes_away(
    word: str, rounds: int, alpha: float | None, share: float
) -> None:
    assert left(word, rounds, alpha) < share * left(None, 40)
