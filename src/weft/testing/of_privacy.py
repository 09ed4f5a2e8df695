"""The law of what hides rows: in a step each row counts by itself, and outside of steps nobody looks at rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from weft.errors import UserError, WeftError
from weft.federation.method import Method
from weft.privacy.hiding import Privacy, mechanisms
from weft.testing.compare import equal, state
from weft.testing.federation import federation
from weft.testing.plays import shallow, steady

ALL = 8
"""Rows of a batch, of which no client has as many: every row is in every batch."""


def check_rows(method: Method) -> None:
    """Gradients of single rows, summed, are those of the batch, and nothing else of a turn comes from rows.

    A turn in which rows are hidden, but without noise and without a bound, is then the plain turn.
    """
    slug = method.info.slug
    if "no gradients" in method.info.needs or method.sees_rows:
        return  # it is refused
    plain = _played(method, Privacy())
    try:
        hidden = _played(method, Privacy(mechanisms("dp-sgd:noise=0,clip=1e9"), insecure=True))
    except (UserError, WeftError) as e:
        raise AssertionError(f"{slug} breaks the rows law: {e}") from e
    assert equal(plain, hidden, 1e-9), (
        f"{slug} breaks the rows law: gradients of single rows lead elsewhere than those of their batch. Let sees_rows say how "
        "the loss of a batch is more than the mean over its rows, or take what an objective knows from outside by pack.own."
    )


def _played(method: Method, privacy: Privacy) -> dict[str, Tensor]:
    made = replace(steady(method), batch=ALL)
    # steps of Adam are of one size, however small a gradient: rounding must not decide on them
    changes: dict[str, Any] = {"optim": made.optim.but(eps=max(made.optim.eps, 1e-4))}
    run = federation(replace(made, **changes), shallow(method), sizes=(5, 3, 4), rounds=2, privacy=privacy, seed=3)
    run.run()
    return {n: v for n, v in state(run).items() if v.is_floating_point()}
