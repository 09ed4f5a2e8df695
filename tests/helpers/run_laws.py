"""The laws of :mod:`weft.testing.of_runs` for whoever plays the runs, of whichever task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from weft.testing import of_runs
from weft.testing.plays import Plays

Law = Callable[[Any], None]
LAWS: list[Law] = [
    of_runs.check_packs,
    of_runs.check_return,
    of_runs.check_sites,
    of_runs.check_scores,
    of_runs.check_ledger,
    of_runs.check_resuming,
    of_runs.check_loading,
    of_runs.check_learning,
    of_runs.check_backbone,
]


def keep(law: Law, played: Plays) -> None:
    """These runs keep it."""
    with mock.patch.object(of_runs, "plays", return_value=played):
        law(played.method)
