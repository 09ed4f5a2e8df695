"""Tiny CLIPs of open_clip in folders, with the tokenizer of the first CLIP."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.load import load

import open_clip  # isort: skip - behind weft, which sees to it that its requirements can be imported
import timm  # isort: skip
from timm.models.convnext import ConvNeXt  # isort: skip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "rn50": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "convnext": {"timm_model_name": "weft_tiny_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "convnext-mlp": {"timm_model_name": "weft_tiny_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
    "convnext-own": {"timm_model_name": "weft_tiny_convnext", "timm_pool": "avg", "timm_proj": "", "image_size": 64},
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
}
"""RN50, ConvNeXt as of the published CLIPs, and a ViT, of a few thousand parameters."""
NAMES = ("cat", "red panda", "baseball_field")


@timm.models.register_model
def weft_tiny_convnext(pretrained: bool = False, **settings: Any) -> ConvNeXt:
    known = {n: v for n, v in settings.items() if n in ("num_classes", "global_pool", "drop_path_rate")}
    found = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), **known)
    found.default_cfg = {"pool_size": (2, 2)}
    return found


def model_cfg(kind: str, **text: Any) -> dict[str, Any]:
    more = {"quick_gelu": True} if kind == "rn50" else {}
    return {"embed_dim": 12, "vision_cfg": VISION[kind], "text_cfg": TEXT | text, **more}


@functools.cache
def folder(kind: str, binary: bool = False) -> Path:
    """As the hub has them: a configuration, and weights as safetensors or (``binary``) of ``torch.save``."""
    from safetensors.torch import save_file

    path = tiny.root() / f"open-clip-{kind}-{binary}"
    path.mkdir()
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg(kind), "preprocess_cfg": given}))

    model = open_clip.CLIP(**model_cfg(kind))
    tiny.scramble(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        g = torch.Generator().manual_seed(1)
        for name, buffer in model.visual.named_buffers():  # of batch norms
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=g)
            elif name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3, generator=g)
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    if binary:
        torch.save(state, path / "open_clip_pytorch_model.bin")
    else:
        save_file(state, path / "open_clip_model.safetensors")
    return path


@functools.cache
def backbone(kind: str, precision: str = "float64", binary: bool = False) -> Backbone:
    return load(str(folder(kind, binary)), classes=NAMES, device="cpu", precision=precision)


def own(kind: str) -> Any:
    """The model as open_clip loads it, in float64."""
    found = open_clip.create_model(f"local-dir:{folder(kind, False)}").eval().double()
    return found.requires_grad_(False)
