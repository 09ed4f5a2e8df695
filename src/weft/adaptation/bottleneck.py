"""Bottleneck adapter after the feed-forward sublayer (Houlsby et al. 2019; placement of Pfeiffer et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.tensors.init import Init
from weft.typed import Count, NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Site


@dataclass(frozen=True)
class Bottleneck(Additive):
    """A(h) = U·ReLU(D h + b_D) + b_U with D [d/r, d] and U [d, d/r].

    Two placements, found by the backbone's structure: in pre-norm blocks the block's output x becomes x + A(x); in post-norm
    blocks (BERT), whose last step is z = LN(s), the output becomes LN(s + A(z)).

    Attributes:
        reduction: r; the bottleneck is d // r wide (at least 1).
        std: of the normal start values of D and U; biases start at 0.
    """

    reduction: Count = 16
    std: NonNegative = 0.02

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.bottlenecks

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        m = max(site.d_in // self.reduction, 1)
        return {
            "down": Init((m, site.d_in), "normal", self.std),
            "down_bias": Init((m,)),
            "up": Init((site.d_in, m), "normal", self.std),
            "up_bias": Init((site.d_in,)),
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        dtype = out.dtype
        h = torch.bmm(out, w["down"].to(dtype).mT) + w["down_bias"].unsqueeze(1).to(dtype)
        return torch.bmm(torch.relu(h), w["up"].to(dtype).mT) + w["up_bias"].unsqueeze(1).to(dtype)
