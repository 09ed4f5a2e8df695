"""Tiny encoders of pictures to stand side by side, each with a size, a mean and a deviation of its own; and by transformers."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.load import load

SIDES = {"vit": 16, "dinov2": 12, "beit": 8, "swin": 16, "clip": 8, "siglip": 8}


@functools.cache
def folder(kind: str) -> str:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    side, at = SIDES[kind], list(SIDES).index(kind)
    own = {} if kind in ("clip", "siglip") else {"image_size": side}
    place = Path(shutil.copytree(tiny.folder(kind, **own), tiny.root() / f"encoder-{kind}"))
    mean, std = [0.1 * at + 0.02 * c for c in range(3)], [0.5 - 0.05 * at + 0.01 * c for c in range(3)]
    ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=mean, image_std=std).save_pretrained(place)
    return str(place)


def name(*kinds: str) -> str:
    return "+".join(map(folder, kinds))


@functools.cache
def backbone(*kinds: str, classes: int = 3, precision: str = "float64", task: str = "auto") -> Backbone:
    return load(name(*kinds), classes=tiny.names(classes), device="cpu", precision=precision, task=task)


@functools.cache
def plain(kind: str) -> tuple[Any, Any]:
    """transformers' own model of a folder without a head, in float64, and its own image processor."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder(kind), dtype=torch.float64).eval().requires_grad_(False)
    return model, AutoImageProcessor.from_pretrained(folder(kind), backend="pil")


def read(kind: str, model: Any, pixel_values: Tensor) -> Tensor:
    """[n, d] what a head of transformers reads of pictures; of a model of two towers what it compares with texts."""
    if kind == "clip":
        embedded: Tensor = model.visual_projection(model.vision_model(pixel_values).pooler_output)
        return embedded
    out = (model.vision_model if kind == "siglip" else model)(pixel_values)
    if kind == "vit":
        found: Tensor = out.last_hidden_state[:, 0]
    elif kind == "dinov2":
        found = torch.cat([out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:].mean(1)], 1)
    else:
        found = out.pooler_output
    return found


def side_by_side(kinds: Sequence[str], pictures: Sequence[np.ndarray]) -> Tensor:
    """[n, Σd], in float64."""
    found = []
    for kind in kinds:
        model, processor = plain(kind)
        inputs = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt")["pixel_values"]
        found.append(read(kind, model, inputs.double()))
    return torch.cat(found, 1)
