"""Members by models that were trained without them: told where rows are learnt by heart, and not where noise is on the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import likelihood_ratio
from weft.audits.audited import Asked
from weft.methods import FedAvg

BY_HEART = FedAvg(tune=Tune("weights"), epochs=12.0, batch=8, optim=Optim("adamw", lr=3e-3))


def test_members_are_told_where_rows_are_learnt_by_heart_and_not_behind_noise(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, BY_HEART, sizes=(80,), spare=40, classes=8, precision="float32")
    run = replace(run, asked=Asked(shadows=4))
    assert likelihood_ratio.missing(run) is None
    (plain,) = likelihood_ratio.attack(run)
    assert plain.found
    assert plain.score > 0.75
    attacked.noisy(run, 0.5)
    (private,) = likelihood_ratio.attack(run)
    assert not private.found


def test_a_shadow_is_the_run_on_half_of_each_clients_rows(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, replace(BY_HEART, tune=Tune("lora"), epochs=1.0), sizes=(8, 5))
    run = replace(run, asked=Asked(shadows=3))
    halves = [own for _, own in likelihood_ratio.shadow_runs(run)]
    for own in halves:
        assert [len(np.intersect1d(own, c.data.train)) for c in run.clients] == [4, 3]
        assert len(own) == 7
    assert len({tuple(own) for own in halves}) == 3


def test_a_row_is_compared_with_the_shadows_without_it() -> None:
    """By hand: of two rows the means of those left out are 1 and 4, and both share the variance of all, (1 + 1) / 1."""
    shadows = np.array([[0.0, 4.0], [2.0, 9.0], [7.0, 9.0]])
    without = np.array([[True, True], [True, False], [False, False]])
    found = likelihood_ratio.above(np.array([3.0, 4.0]), shadows, without)
    assert found == pytest.approx([2 / 2**0.5, 0.0])
    nowhere = likelihood_ratio.above(np.array([3.0, 4.0]), shadows, without & [[True, False]] * 3)
    assert np.isnan(nowhere).tolist() == [False, True]


def test_it_is_played_only_if_it_is_asked_for(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, replace(BY_HEART, tune=Tune("lora"), epochs=1.0), sizes=(4,))
    assert "--shadows" in (likelihood_ratio.missing(run) or "")
