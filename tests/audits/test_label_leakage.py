"""Labels out of heads: all of them of one row, most of a client's, and no more than by chance once noise is on the update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import label_leakage
from weft.methods import FedAvg, FedIT

PLAIN = FedAvg(tune=Tune("lora", rank=2), epochs=1.0, batch=4, optim=Optim("sgd", lr=0.1))


def test_of_one_row_the_class_below_zero_is_its_label() -> None:
    rng = np.random.default_rng(0)
    for y in range(10):
        p = rng.dirichlet(np.ones(10))
        assert label_leakage.guessed(p - np.eye(10)[y], 1).tolist() == np.eye(10, dtype=int)[y].tolist()


def test_of_a_batch_all_labels_are_read_off_where_the_model_knows_nothing() -> None:
    """The gradient is counts alone then; a factor on it, such as a learning rate, changes nothing."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        true = rng.multinomial(8, rng.dirichlet(np.full(20, 0.3)))
        slope = 8 / 20 - true
        found = label_leakage.guessed(3.7 * slope, 8)
        assert found.sum() == 8
        assert np.minimum(found, true).sum() >= 7


def test_guesses_are_as_many_as_rows_also_of_a_gradient_of_zero() -> None:
    assert label_leakage.guessed(np.zeros(4), 6).tolist() in ([2, 2, 1, 1], [1, 1, 2, 2])
    assert label_leakage.rounded(np.array([0.4, 1.4, 1.2])).tolist() in ([0, 2, 1], [1, 1, 1])


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_labels_are_found_where_nothing_protects_and_not_behind_noise(tmp_path: Path, model: str) -> None:
    """A BERT's head has a bias; a GPT-2's has none, and its weights tell."""
    run = attacked.attacked(tmp_path, PLAIN, model, classes=10, sizes=(8,) * 8)
    assert label_leakage.missing(run) is None
    (plain,) = label_leakage.attack(run)
    assert plain.n == 64
    assert plain.found
    assert plain.score > plain.chance + 0.2
    assert attacked.behind_noise(run, label_leakage.attack) < plain.chance + 0.05


def test_the_score_counts_right_guesses_and_nothing_else(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, PLAIN, classes=10, sizes=(8,) * 4)
    (first,) = label_leakage.attack(run)
    guesses = []
    for update in run.updates:
        slope = label_leakage.head_slope(run, update)
        assert slope is not None
        guesses.append(label_leakage.guessed(slope, 8))
    true = [np.bincount(run.labels(run.rows(u)), minlength=10) for u in run.updates]
    assert first.score == pytest.approx(np.mean([np.minimum(g, t).sum() / 8 for g, t in zip(guesses, true, strict=True)]))


def test_a_client_that_sends_no_head_tells_nothing(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, replace(PLAIN, tune=Tune("lora", rank=2, head=False)))
    assert label_leakage.missing(run) == "clients send no head"
    assert label_leakage.missing(attacked.attacked(tmp_path / "tags", FedIT(rank=2), task="tokens")) == "rows have no class each"
