"""Rotary positions by themselves: keys as if they stood at a position, and back from there.

A key k at position t is s R(t) k, for a rotation R: a query at t' sees R(t - t') k, the distance alone (J. Su et al., "RoFormer:
Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864). The scale s is 1 but where a model is stretched to longer
texts (YaRN).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

ROTATE = "apply_rotary_pos_emb"
"""What files of transformers call the function that turns queries and keys, each in the way of its model."""
MOVING = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies follow the longest row that was seen."""


@torch.no_grad()
def turned(backbone: Backbone, keys: Mapping[str, Tensor], position: int) -> dict[str, Tensor] | None:
    """R(position) k of keys at attention modules, as one token at that position shows it; float64.

    Args:
        keys: path of an attention module -> [H, n, d] on the CPU. position: below 0, keys are turned back from there.

    Returns:
        None where a module has no such positions, or has them in code of its own, or where they follow the rows' lengths.
    """
    angles: dict[str, tuple[Tensor, Tensor]] = {}
    makers: list[tuple[Any, Any, Any, Any]] = []

    def note(name: str, given: dict[str, Any]) -> None:
        if isinstance(given.get("position_embeddings"), tuple):
            angles[name] = given["position_embeddings"]

    hooks = [
        backbone.module(name).register_forward_pre_hook(lambda _, args, given, name=name: note(name, given), with_kwargs=True)
        for name in keys
    ]
    for module in backbone.model.modules():
        if not list(module.parameters()):
            hooks.append(module.register_forward_hook(lambda *call: makers.append(call), with_kwargs=True))
    try:
        one = torch.ones(1, 1, dtype=torch.int64, device=backbone.device)
        backbone.model(input_ids=one, position_ids=one * abs(position))
    except TypeError:  # it takes no positions
        return None
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, key in keys.items():
        rotate = inspect.unwrap(type(backbone.module(name)).forward).__globals__.get(ROTATE)
        if name not in angles or rotate is None or [*inspect.signature(rotate).parameters][:4] != ["q", "k", "cos", "sin"]:
            return None
        made = next((call for call in makers if isinstance(call[3], tuple) and call[3][0] is angles[name][0]), None)
        if made is None or not hasattr(made[0], "config") or any(kind in _kind(made[0]) for kind in MOVING):
            return None
        module, (x, *more), given, _ = made
        fresh = type(module)(module.config)  # frequencies in the model are rounded as its weights are
        cos, sin = fresh(x.cpu().double(), *map(_here, more), **{n: _here(v) for n, v in given.items()})
        length = (cos**2 + sin**2).sqrt()
        cos, sin = cos / length, sin / (length if position >= 0 else -length)
        first, rest = key.double()[None].split([cos.shape[-1], key.shape[-1] - cos.shape[-1]], -1)
        found[name] = torch.cat([rotate(first, first, cos, sin)[1], rest], -1)[0]
    return found


def _kind(module: Any) -> str:
    return str(getattr(module, "rope_type", ""))


def _here(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
