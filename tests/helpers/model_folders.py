"""Folders of tiny models that a test may break, loaded or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.errors import UserError


def copy(kind: str, to: Path, **more: Any) -> Path:
    """A folder of a tiny model that a test may break."""
    shutil.copytree(tiny.folder(kind, **more), to)
    return to


def loaded(folder: Path, **more: Any) -> Backbone:
    return load(str(folder), **{"classes": tiny.names(3), "device": "cpu", "precision": "float32"} | more)


def refused(folder: Path, words: str, **more: Any) -> None:
    with pytest.raises(UserError, match=words) as e:
        loaded(folder, **more)
    assert "\n" not in str(e.value)


VIT = tiny.SHAPES["vit"]


def images(kind: str, to: Path, shape: dict[str, Any], auto: str = "AutoModel", **more: Any) -> Path:
    """A folder of a tiny model of pictures of any architecture."""
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **shape, **more))
    tiny.scramble(model)
    model.save_pretrained(to)
    size = shape.get("image_size", 8)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(to)
    return to
