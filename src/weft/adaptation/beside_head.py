"""A small low-rank adapter beside the layer that makes the logits, of one size on any backbone (pFedLoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.tensors.init import Init
from weft.typed import Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class BesideHead(Additive):
    """U V P z is added to the logits of z, what the head's last layer reads: P [width, d_in], V [rank, width], U [classes, rank].

    P is for a backbone's own size, and V and U are of the same shape and name on any. P and V ~ N(0, 1/columns); U = 0.
    """

    width: Count
    rank: Count
    classes: Count

    def sites(self, backbone: Backbone) -> list[Site]:
        return [replace(head, key="logits") for head in backbone.heads[-1:]]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {
            "P": Init((self.width, site.d_in), "normal", 1 / math.sqrt(site.d_in)),
            "V": Init((self.rank, self.width), "normal", 1 / math.sqrt(self.width)),
            "U": Init((self.classes, self.rank)),
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        z = x.to(w["P"].dtype)
        return z @ w["P"].mT @ w["V"].mT @ w["U"].mT
