"""The backbones whose weights are part of Weft, as anyone would load them who has transformers and not Weft."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, LlavaForConditionalGeneration, ViltModel, ViTModel

from paths import ROOT
from weft.backbones.finding import find
from weft.backbones.short_names import KNOWN
from weft.data.rows import Rows

SHIPPED = sorted(name for name, known in KNOWN.items() if known.shipped)


def script(name: str) -> ModuleType:
    """A script of ``scripts/``, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(name: str) -> Path:
    return Path(find(name)[0])


def plain(name: str) -> tuple[Any, dict[str, Any]]:
    """Model, and what transformers says of loading it."""
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": True}
    if KNOWN[name].kind == "image and text":
        return CLIPModel.from_pretrained(folder(name), **options)  # type: ignore[return-value]
    if KNOWN[name].kind == "questions":
        return ViltModel.from_pretrained(folder(name), **options)  # type: ignore[return-value]
    if KNOWN[name].kind == "image to text":
        return LlavaForConditionalGeneration.from_pretrained(folder(name), **options)  # type: ignore[return-value]
    return ViTModel.from_pretrained(folder(name), add_pooling_layer=False, **options)  # type: ignore[return-value]


def pixels(rows: Rows, among: np.ndarray | slice = slice(None)) -> np.ndarray:
    """uint8 [n, h, w, 3]."""
    assert rows.images is not None
    return np.stack([np.asarray(rows.images[i]) for i in np.arange(len(rows))[among]])


def prepared(name: str, rows: Rows, most: int = 720) -> tuple[Tensor, Tensor]:
    """About ``most`` rows spread over a table, as the backbone's own processor gives them, and their labels."""
    some = rows.take(np.arange(0, len(rows), max(1, len(rows) // most)))
    assert some.images is not None
    processor = AutoImageProcessor.from_pretrained(folder(name), backend="pil")
    given = processor(images=[some.images[i] for i in range(len(some))], return_tensors="pt")["pixel_values"]
    return given, torch.from_numpy(some.labels.copy())


@torch.no_grad()
def by_nearest_mean(vit: Any, x: Tensor, labels: Tensor) -> float:
    """Accuracy of the nearest class mean of the class token, over one half of the pictures for the other half."""
    features = vit(x).last_hidden_state[:, 0]
    means = torch.stack([features[::2][labels[::2] == c].mean(0) for c in range(int(labels.max()) + 1)])
    return float((torch.cdist(features[1::2], means).argmin(1) == labels[1::2]).float().mean())
