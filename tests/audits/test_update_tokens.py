"""Tokens out of updates: rows of a table that has moved, and spans of what the first block reads; none behind noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import update_tokens
from weft.methods import FedAvg

WHOLE = FedAvg(tune=Tune("weights"), epochs=2.0, batch=4, optim=Optim("sgd", lr=0.05))
BLOCKS = replace(WHOLE, tune=Tune("weights", weights="blocks"), epochs=1.0)
LORA = replace(WHOLE, tune=Tune("lora", rank=24, at="q,v"), epochs=3.0)


@pytest.mark.parametrize("optim", [Optim("sgd", lr=0.05), Optim("adamw", lr=1e-3, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_the_rows_that_moved_are_the_tokens_of_the_texts(tmp_path: Path, optim: Optim) -> None:
    run = attacked.attacked(tmp_path, replace(WHOLE, optim=optim), sizes=(3,) * 4)
    assert update_tokens.missing(run) is None
    (plain,) = update_tokens.attack(run)
    assert plain.score == 1.0
    assert plain.chance < 0.7
    assert plain.found
    assert attacked.behind_noise(run, update_tokens.attack) < plain.chance + 0.05


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
def test_tokens_lie_in_the_span_of_the_first_blocks_gradient(tmp_path: Path, model: str) -> None:
    """d is 32, so that texts of fewer tokens leave the span a proper one; the layers of a GPT-2 lie the other way round."""
    run = attacked.attacked(tmp_path, BLOCKS, model, sizes=(1,) * 8)
    assert update_tokens.missing(run) is None
    (plain,) = update_tokens.attack(run)
    assert plain.found
    assert plain.score > 0.9
    assert attacked.behind_noise(run, update_tokens.attack) < plain.chance + 0.05


def test_so_they_do_in_that_of_loras_first_factor(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, LORA, sizes=(1,) * 8)
    (plain,) = update_tokens.attack(run)
    assert plain.found
    assert plain.score > 0.9
    assert attacked.behind_noise(run, update_tokens.attack) < plain.chance + 0.05


@pytest.mark.parametrize("rank", [2, 4])
def test_fewer_rows_than_tokens_tell_them_all_the_same(tmp_path: Path, rank: int) -> None:
    """d is 32, so that it takes texts of few tokens; queries and values have twice the rank in rows."""
    run = attacked.attacked(tmp_path, replace(LORA, tune=Tune("lora", rank=rank, at="q,v")), sizes=(1,) * 8)
    (plain,) = update_tokens.attack(run)
    assert plain.found
    assert plain.score > 0.6
    assert attacked.behind_noise(run, update_tokens.attack) < plain.chance + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_what_places_have_in_common_is_taken_off(seed: int) -> None:
    """Places that are ten times as loud as tokens, behind four rows, of twelve tokens at twelve places."""
    stream = torch.Generator().manual_seed(seed)
    tokens = torch.randn(600, 1, 64, generator=stream, dtype=torch.float64)
    places = 10 * torch.randn(1, 12, 64, generator=stream, dtype=torch.float64)
    x, own = tokens + places, torch.randperm(600, generator=stream)[:12]
    change = torch.randn(4, 12, generator=stream, dtype=torch.float64) @ x[own, torch.arange(12)]
    score = update_tokens.likelihoods(change, 1e-9, 600, x.split(100)).numpy()
    assert set(np.flatnonzero(score > 0).tolist()) == set(own.tolist()), "it ends where these explain the change"


def test_a_change_that_spans_everything_tells_nothing() -> None:
    x = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def unlooked() -> Iterator[Tensor]:
        raise AssertionError("a token was looked at")
        yield x

    assert update_tokens.likelihoods(x[:12, 0], 1e-9, 50, unlooked()).tolist() == [0.0] * 50
    assert update_tokens.likelihoods(x[:7, 0], 1e-9, 50, [x])[:7].min() > 8.9, "these lie in their own span"


def test_adam_destroys_the_span(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path, replace(LORA, optim=Optim("adamw", lr=1e-3)), sizes=(1,) * 8)
    assert update_tokens.attack(run)[0].score < 0.6


def test_weight_decay_moves_all_rows_alike_and_tells_nothing() -> None:
    began = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = -0.01 * began
    change[3] += 0.001
    far = update_tokens.distances(change, began)
    assert far.argmax() == 3
    assert float(far[[0, 1, 2, 4]].max()) < 1e-12


def test_pictures_have_no_tokens_and_biases_no_span(tmp_path: Path) -> None:
    assert update_tokens.missing(attacked.attacked(tmp_path / "a", WHOLE, "vit")) == "rows are no texts"
    bias = replace(WHOLE, tune=Tune("bias", biases="linear"))
    assert "no embeddings of words" in (update_tokens.missing(attacked.attacked(tmp_path / "b", bias)) or "")
    assert update_tokens.most(np.array([0.1, 3.0, 2.0]), 2).tolist() == [1, 2]
