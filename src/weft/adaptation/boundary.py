"""Boundaries between the stages of a model that is trained in parts by several machines: what crosses them is rounded to int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Count, Whole

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

LEVELS = 127


def rounded(x: Tensor, block: int) -> Tensor:
    """What arrives of numbers that are sent as int8, each ``block`` of the last dimension by its largest magnitude, of which the
    error is 1/254 at most.
    """
    width = x.shape[-1]
    padded = F.pad(x, (0, -width % block)).unflatten(-1, (-1, block))
    scale = padded.abs().amax(-1, keepdim=True).float()
    sent = torch.round(padded.float() / torch.where(scale > 0, scale, 1.0) * LEVELS).to(torch.int8)
    return (sent.float() * (scale / LEVELS)).flatten(-2)[..., :width].to(x.dtype)


class _Crossing(torch.autograd.Function):
    """Hidden states one way, their gradient the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int) -> Tensor:
        ctx.block = block
        return rounded(x, block)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return rounded(grads[0], ctx.block), None


@dataclass(frozen=True)
class Boundary(Additive):
    """Where the blocks of a backbone are cut into stages, as evenly as can be. It trains nothing; passes without a gradient are
    those of the model in one place, and cross nothing.

    Attributes:
        stages: S, hence S - 1 boundaries. block: numbers that share a scale; 0 = they cross as they are.
    """

    stages: Count = 2
    block: Whole = 64
    mode: ClassVar[Mode] = "enters"
    always = True

    def sites(self, backbone: Backbone) -> list[Site]:
        blocks = len(backbone.entries)
        if self.stages > blocks:
            raise UserError(f'backbone "{backbone.name}" has {blocks} blocks, of which {self.stages} stages can\'t be made.')
        return [backbone.entries[round(stage * blocks / self.stages)] for stage in range(1, self.stages)]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        if not self.block or not torch.is_grad_enabled():
            return out
        crossed: Tensor = _Crossing.apply(out, self.block)
        return crossed
