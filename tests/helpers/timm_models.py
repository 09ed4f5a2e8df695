"""A tiny MLP-Mixer of timm in a folder, as the hub has those of timm."""

from __future__ import annotations

import functools
from typing import Any

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.load import load

import timm  # isort: skip - behind weft, which sees to it that its requirements can be imported
from timm.models.mlp_mixer import MlpMixer  # isort: skip

PICTURES = {"input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 0.8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@timm.models.register_model
def weft_tiny_mixer(pretrained: bool = False, **settings: Any) -> MlpMixer:
    return MlpMixer(img_size=8, patch_size=4, num_blocks=3, embed_dim=32, num_classes=settings["num_classes"])


@functools.cache
def mixer_folder() -> str:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    model = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="weft_tiny_mixer", num_labels=7, pretrained_cfg=dict(PICTURES))
    )
    tiny.scramble(model)
    path = tiny.root() / "timm-mixer"
    model.save_pretrained(path)
    return str(path)


@functools.cache
def mixer(precision: str = "float32") -> Backbone:
    return load(mixer_folder(), classes=tiny.names(3), device="cpu", precision=precision)
