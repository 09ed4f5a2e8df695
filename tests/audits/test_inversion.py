"""Pictures out of updates: one row's is made again where nothing protects, and is nothing of the kind behind noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import attacked
import tiny
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import inversion
from weft.audits.audited import Asked
from weft.backbones.load import load
from weft.backbones.pixels import Pixels
from weft.methods import FedAvg

ONE_STEP = FedAvg(tune=Tune("weights"), epochs=1.0, batch=8, optim=Optim("sgd", lr=0.05))


def digits(fed: tiny.Federation) -> None:
    """Every picture is a handwritten digit, bright on dark."""
    table = fed.bench.table
    assert isinstance(table, Pixels)
    for i, written in enumerate(load_digits().images[: len(table)]):  # 8 by 8, from 0 to 16
        table.values[i] = np.asarray(Image.fromarray(np.uint8(written * 255 / 16)).resize((16, 16)))


def test_the_picture_of_one_row_is_made_again_and_not_behind_noise(tmp_path: Path) -> None:
    model = load("glyph-vit", classes=tiny.names(10), device="cpu", precision="float32")
    run = attacked.attacked(tmp_path, ONE_STEP, model, sizes=(1, 1), classes=10, precision="float32", paint=digits)
    run = replace(run, asked=Asked(steps=200))
    assert inversion.missing(run) is None
    (plain,) = inversion.attack(run)
    assert plain.found
    assert plain.score > plain.chance + 3
    (private,) = inversion.attack(attacked.protected(run, norm=0.1, noise=1.0))
    assert not private.found
    assert private.score < plain.score - 3


def test_what_is_attacked_has_few_pictures(tmp_path: Path) -> None:
    run = attacked.attacked(tmp_path / "a", ONE_STEP, "vit", sizes=(6, 3, 1, 9))
    assert [u.client for u in inversion.targets(run)] == ["client-2", "client-1"]
    many = attacked.attacked(tmp_path / "b", ONE_STEP, "vit", sizes=(6, 9))
    assert inversion.missing(many) == "every client has more than 4 pictures, whose gradients are not told apart"
    assert inversion.missing(attacked.attacked(tmp_path / "c", ONE_STEP, "bert")) == "rows are no pictures that one encoder reads"


def test_pictures_are_compared_with_those_that_they_are_nearest_to() -> None:
    true = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert inversion.psnr(true[0], true[0] + 0.1) == pytest.approx(20)
    assert inversion.matched(true[[2, 0, 1]] + 0.1, true) == pytest.approx(20)
    assert float(inversion.variation(torch.ones(1, 3, 4, 4))) == 0
