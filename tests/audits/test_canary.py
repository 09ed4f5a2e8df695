"""Exposure of a secret: large where a model has learnt its row by heart, and that of a drawn rank otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import canary
from weft.audits.audited import Asked, Audited
from weft.backbones.reply_table import Replies
from weft.errors import UserError
from weft.methods import FedAvg

BY_HEART = FedAvg(tune=Tune("weights"), epochs=30.0, batch=8, optim=Optim("adamw", lr=3e-3))


def secret(run: Audited) -> str:
    """The answer of a training row that has three words."""
    table = run.server.bench.table
    assert isinstance(table, Replies)
    return next(table.wanted[r] for c in run.clients for r in c.data.train if len(table.wanted[r].split()) == 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    where = tmp_path_factory.mktemp("canary")
    return attacked.attacked(where, BY_HEART, "llama", task="generation", sizes=(12,), precision="float32")


def test_a_secret_learnt_by_heart_is_exposed_and_not_behind_noise(run: Audited) -> None:
    run = replace(run, asked=Asked(canary=secret(run)))
    assert canary.missing(run) is None
    (plain,) = canary.attack(run)
    assert plain.found
    assert plain.score > 8
    assert plain.most == pytest.approx(math.log2(plain.n))
    assert secret(run) not in str(plain.record()), "which is kept in the folder of a run and shown on its page"
    before = dict(run.server.shared)
    attacked.noisy(run, 0.5)
    (private,) = canary.attack(run)
    run.server.shared.update(before)
    assert not private.found
    assert private.score < plain.score - 4


def test_others_have_the_shape_of_the_secret_and_its_context(run: Audited) -> None:
    run = replace(run, asked=Asked(canary=secret(run)))
    table = run.server.bench.table
    assert isinstance(table, Replies)
    row, at = canary.found(run, table, secret(run))
    drawn = canary.drawn(run, table, row, at)
    tokenizer = run.server.bench.backbone.tokenizer
    words = [tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in drawn]
    assert words[0] == secret(run).split()
    assert {tuple(map(canary.shape, some)) for some in words} == {tuple(map(canary.shape, words[0]))}
    assert words[0] not in words[1:]
    copies = canary._copies(table, row, at, drawn)
    kept = copies.ids.reshape(len(drawn), -1)
    assert np.array_equal(kept[0], table.ids[table.offsets[row] : table.offsets[row + 1]])
    assert (kept[1:] == kept[0]).all(0).sum() == kept.shape[1] - 3
    assert np.array_equal(
        canary.losses_of(run, row, copies)[:1], canary.losses_of(run, row, canary._copies(table, row, at, drawn[:1]))
    )


def test_the_mean_exposure_of_a_drawn_rank_is_what_chance_says() -> None:
    ranks = np.arange(1, 1002)
    exposure = math.log2(1001) - np.log2(ranks)
    assert exposure.mean() == pytest.approx(canary.BLIND, abs=0.02)
    assert (exposure - canary.LUCK > canary.BLIND).mean() == pytest.approx(0.05, abs=0.001)


def test_a_secret_that_nobody_has_is_one_sentence(run: Audited) -> None:
    assert "with --canary" in (canary.missing(run) or "")
    with pytest.raises(UserError, match="no answer that clients train on holds"):
        canary.attack(replace(run, asked=Asked(canary="w1 w1 w1 w1")))
    assert canary.shape("Ġabc12") == "a99"
    assert canary.shape("12") == "99" != canary.shape("123")
