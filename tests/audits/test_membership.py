"""Members by their loss: told where rows are learnt by heart, and not where noise is on the model; and what ε that refutes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import membership, one_run_bound, roc
from weft.methods import FedAvg, FedSALoRA

BY_HEART = FedAvg(tune=Tune("weights"), epochs=20.0, batch=8, optim=Optim("adamw", lr=3e-3))


def test_the_area_is_that_of_scikit_learn_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 25) + 0.0
    truth = np.r_[np.ones(40), np.zeros(25)]
    assert roc.auc(members, others) == pytest.approx(roc_auc_score(truth, np.r_[members, others]))
    assert roc.auc(others + 100, others) == 1.0


def test_members_found_at_a_rate_of_false_alarms() -> None:
    others, members = np.arange(100.0), np.array([98.0, 98.5, 99.5, 3.0])
    assert roc.found_at(members, others, 0.01) == 0.5, "one of the others may be above the threshold, 98"
    assert roc.found_at(members, others, 0.0) == 0.25
    assert roc.found_at(members, others, 1 / 3) == 0.75


def test_chance_is_within_its_bound_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(400):
        members, others = rng.normal(size=60), rng.normal(size=40)
        above += roc.lowest_auc(roc.auc(members, others), 60, 40) > 0.5
    assert 0.02 < above / 400 < 0.09


def test_members_are_told_where_rows_are_learnt_by_heart_and_not_behind_noise(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, BY_HEART, sizes=(80,), spare=40, classes=8)
    assert membership.missing(run) is None
    (plain,) = membership.attack(run)
    assert plain.found
    assert plain.score > 0.75
    (bound,) = one_run_bound.attack(run)
    assert bound.found
    assert bound.score > 0.3
    attacked.noisy(run, 0.5)
    (private,) = membership.attack(run)
    assert not private.found
    assert one_run_bound.attack(run)[0].score == 0.0


def test_of_personal_models_each_is_asked_about_its_own_rows(tmp_path: Path) -> None:
    method = FedSALoRA(rank=4, epochs=40.0, batch=8, optim=Optim("adamw", lr=1e-2))
    run = attacked.attacked(tmp_path, method, sizes=(20,) * 3, classes=4)
    assert run.method.views[0] == "personal"
    asked = [(pack.clients[0].id, train.tolist(), test.tolist()) for pack, train, test in membership.models(run)]
    assert asked == [(c.id, c.data.train.tolist(), c.data.test.tolist()) for c in run.clients]
    assert membership.attack(run)[0].score > 0.7


# the bound ------------------------------------------------------------------------------------------------------------


def test_the_chance_is_a_binomial_and_the_bound_its_inverse() -> None:
    """All of r guesses right refute ε below log(q / (1 - q)), q = level^(1/r); by hand, without δ."""
    q = 0.05 ** (1 / 100)
    assert one_run_bound.epsilon(1000, 100, 100, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert one_run_bound.p_value(10, 4, 3, math.log(3), 0.0) == pytest.approx(4 * 0.75**3 * 0.25 + 0.75**4)
    assert one_run_bound.epsilon(1000, 100, 50, 0.0, 0.05) == 0.0


def test_delta_is_counted_as_the_theorem_has_it() -> None:
    """Of two guesses, both right: P[W ≥ 2] = q²; the largest of P[W = 1] and (P[W = 1] + P[W = 0]) / 2, times 2 m δ."""
    q = 1 / (1 + math.exp(-1.0))
    one, none = 2 * q * (1 - q), (1 - q) ** 2
    wanted = q**2 + 2 * 7 * 1e-3 * max(one, (one + none) / 2)
    assert one_run_bound.p_value(7, 2, 2, 1.0, 1e-3) == pytest.approx(wanted)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_below_its_epsilon_and_not_far(epsilon: float) -> None:
    """A mechanism with exactly ε, over and over: the bound exceeds ε in no more than 5 % of the runs, and comes near."""
    rng = np.random.default_rng(1)
    truth, bounds = 1 / (1 + math.exp(-epsilon)), []
    for _ in range(60):
        told = [np.where(rng.random(1000) < truth, 1.0, -1.0) * sign for sign in (1, -1)]
        bounds.append(one_run_bound.bound_of(told[0], told[1], 0.0))
    assert np.mean(np.array(bounds) > epsilon) <= 0.08
    assert np.median(bounds) > 0.7 * epsilon


def test_what_the_accountant_says_is_shown_beside_it(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, replace(BY_HEART, epochs=1.0), sizes=(6,) * 2)
    assert one_run_bound.accounted(run.lines) is None
    lines: list[dict[str, Any]] = [{"round": 0}, {"round": 1, "privacy": {"epsilon": 3.25, "delta": 1e-6}}]
    assert one_run_bound.accounted(lines) == 3.25
    (found,) = one_run_bound.attack(replace(run, lines=lines))
    assert "promises at most 3.25" in found.sentence
    assert found.about["delta"] == 1e-6
