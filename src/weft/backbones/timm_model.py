"""Image models of timm, which come through a wrapper of transformers: what of them is not as transformers has it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

KIND = "timm_wrapper"


def processor(config: Any) -> Any:
    """The image processor of transformers that does what timm does to a picture for evaluation.

    Raises:
        ValueError: transformers has none that does.
    """
    import timm.data

    given = timm.data.resolve_data_config(pretrained_cfg=config.pretrained_cfg, verbose=False)
    _, height, width = given["input_size"]
    mode = given["crop_mode"]
    if mode != "center" or height != width:
        raise ValueError(f"it makes pictures of {height}×{width} by crop mode {mode}, which nothing of transformers does")
    return resizing(
        height, given["interpolation"], given["mean"], given["std"], edge=math.floor(height / given["crop_pct"])
    )


def resizing(size: int, how: str, mean: Any, std: Any, edge: int = 0) -> Any:
    """Pictures of size² pixels: the middle of what has ``edge`` pixels along its shorter side; 0 = all, squeezed.

    Args:
        how: ``bilinear``, ``bicubic`` … mean, std: of values from 0 to 1.

    Raises:
        ValueError: an unknown way.
    """
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if how.upper() not in Image.Resampling.__members__:
        raise ValueError(f'pictures are resized in an unknown way, "{how}"')
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(
        size={"shortest_edge": edge} if edge else square,
        crop_size=square,
        do_center_crop=bool(edge),
        resample=Image.Resampling[how.upper()],
        image_mean=list(mean),
        image_std=list(std),
    )


def head(base: nn.Module) -> tuple[str, ...]:
    """Names inside the model of the modules that tell classes apart, which lie inside what the wrapper takes for the base."""
    own = base.get_classifier()  # type: ignore[operator]
    return tuple(n for n, m in base.named_modules() if m is own)
