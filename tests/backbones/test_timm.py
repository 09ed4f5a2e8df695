"""Models of timm: their pictures, their merged form, and what is said where timm is not installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import encoders
import timm_models
import tiny
from exporting import RUN_CLOSE, exported
from weft.backbones.load import load
from weft.backbones.pixels import pixels
from weft.backbones.run_table import tabulate
from weft.data.images import Images
from weft.data.rows import Rows
from weft.errors import UserError
from weft.export.merged import merge
from weft.methods.reparameterized.fedit import FedIT


def photographs() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, size=(h, w, 3), dtype=np.uint8)) for h, w in ((8, 8), (31, 17), (9, 40), (64, 64))
    ]


@pytest.mark.parametrize("given", [{}, {"interpolation": "bilinear", "crop_pct": 1.0}, {"crop_pct": 0.6, "crop_mode": "border"}])
def test_pictures_are_what_timm_makes_of_them(given: dict[str, object]) -> None:
    import timm.data
    from transformers import TimmWrapperConfig

    from weft.backbones.timm_model import processor

    settings = timm_models.PICTURES | given
    ours = processor(TimmWrapperConfig(architecture="weft_tiny_mixer", pretrained_cfg=settings))
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=settings), is_training=False)
    for picture in photographs():
        found = torch.as_tensor(ours(images=[picture], return_tensors="np")["pixel_values"][0])
        torch.testing.assert_close(found, theirs(picture), rtol=0.0, atol=1e-5)
    images = Images([np.asarray(p) for p in photographs()])
    b = replace(timm_models.mixer(), processor=ours)
    table = pixels(b, Rows(None, None, np.zeros(len(images), np.int64), np.arange(len(images)), images=images))
    wanted = torch.stack([theirs(p) for p in photographs()])
    torch.testing.assert_close(table.collate(np.arange(len(images)))["pixel_values"], wanted, rtol=0.0, atol=1e-5)


def test_a_merged_model_of_timm_is_one_again(tmp_path: Path) -> None:
    run = tiny.federation(FedIT(rank=2, sites="all"), timm_models.mixer(), rounds=1).run()
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    whole.mkdir()
    exported(run, adapter)
    merge(adapter, whole, "float32")
    again = load(str(whole), classes=tiny.names(3), device="cpu", precision="float32")
    wanted = run.server.pack().predict(lambda p, b: run.method.forward(p, b, "global"), [np.arange(6)])[0]
    torch.testing.assert_close(again.model(**run.bench.table.collate(np.arange(6))).logits, wanted, **RUN_CLOSE)


def test_a_mixer_stands_beside_a_vit() -> None:
    """What its own head reads is the mean over patches of what leaves its last norm."""
    both = load(
        f"{timm_models.mixer_folder()}+{encoders.folder('vit')}", classes=tiny.names(3), device="cpu", precision="float64"
    )
    given = [np.asarray(p) for p in photographs()]
    table = tabulate(both, Rows(None, None, np.zeros(4, np.int64), np.arange(4), images=Images(given)))
    inputs = both.to_model(table.collate(np.arange(4)))
    own = timm_models.mixer("float64").model.timm_model.forward_features(inputs["pixel_values"]).mean(1)
    wanted = torch.cat([own, encoders.side_by_side(["vit"], given)], 1)
    torch.testing.assert_close(both.model.embed_images(**inputs), wanted, rtol=0.0, atol=1e-5)


def test_without_timm_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def lacks(*_: object, **__: object) -> None:
        raise ImportError("TimmWrapperConfig requires the timm library but it was not found in your environment.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", lacks)
    with pytest.raises(UserError, match=r"is a model of timm, which is not installed: .*'\.\[vision\]'\.$"):
        load(timm_models.mixer_folder(), classes=3, device="cpu", precision="float32")
