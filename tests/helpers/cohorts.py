"""Rounds with a cohort of the test's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import tiny

ABSENT = ((0, 1, 2), (0, 2), (1, 2), (0, 1))
"""Four rounds, of which every client misses one and comes back, but the last."""


def play(run: tiny.Federation, t: int, present: Sequence[int]) -> dict[str, Any]:
    """Round t, in which these clients take part; what is recorded of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.engines.engine.cohort", lambda *_: [run.clients[k] for k in present])
        record = run.simulation.round(t)
    assert record is not None
    assert not record["refused"]
    return record
