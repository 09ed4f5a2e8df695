"""Image models of timm, which come through a wrapper of transformers: what of them is not as transformers has it."""

from __future__ import annotations

from typing import Any

from torch import nn

from weft.backbones.transforms import Transforms

KIND = "timm_wrapper"


def processor(config: Any) -> Transforms:
    """What timm does to a picture for evaluation."""
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    given = resolve_data_config(pretrained_cfg=config.pretrained_cfg, verbose=False)
    return Transforms(create_transform(**given, is_training=False), given["input_size"][1:], given["mean"], given["std"])


def head(base: nn.Module) -> tuple[str, ...]:
    """Names inside the model of the modules that tell classes apart, which lie inside what the wrapper takes for the base."""
    own = base.get_classifier()  # type: ignore[operator]
    return tuple(n for n, m in base.named_modules() if m is own)


def pools_by_mean(trunk: nn.Module) -> bool:
    """Whether a network makes a map of places, and takes their mean before its last layers."""
    from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d

    return any(isinstance(m, SelectAdaptivePool2d) and m.pool_type == "avg" for m in trunk.modules())
