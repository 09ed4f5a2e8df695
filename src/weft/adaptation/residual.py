"""A residual adapter on the embedding of a whole image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.tensors.init import Init
from weft.typed import Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Residual(Additive):
    """z + ReLU(W2·ReLU(W1·z)), W1 [p/ratio, p], W2 [p, p/ratio], no biases, on the embedding z before it is normalised.

    Both start uniform on ±1/√(their inputs), as a linear layer does.

    Attributes:
        ratio: width of the embedding over that of the hidden layer.
    """

    ratio: Count = 4

    def sites(self, backbone: Backbone) -> list[Site]:
        return [backbone.joint_embedding()]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        p = site.d_in
        m = max(p // self.ratio, 1)
        return {"down": Init((m, p), "uniform", 1 / math.sqrt(p)), "up": Init((p, m), "uniform", 1 / math.sqrt(m))}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        hidden = torch.relu(torch.bmm(out.to(w["down"].dtype), w["down"].mT))
        return torch.relu(torch.bmm(hidden, w["up"].mT))
