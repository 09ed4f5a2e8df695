"""Two LoRAs at one place, of which every token takes its own mixture (FedALT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from weft.adaptation.lora import LoRA, low_rank_product
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Routed(LoRA):
    """ΔW x = (α/r) (π_own B A x + π_rest RB RA x) with (π_rest, π_own) = softmax(G x) for every token x.

    G [2, d_in] ~ U(±1/√d_in); A and RA as in LoRA; B and RB zero.

    Attributes:
        router: start values of G: ``random``, or ``even``: zero, so that both begin at a half.
    """

    router: Literal["random", "even"] = "random"

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        own = super().tensors(backbone, site)
        shape = (2, site.d_in)
        gate = Init(shape) if self.router == "even" else Init(shape, "uniform", 1 / math.sqrt(site.d_in))
        return {**own, "RA": own["A"], "RB": own["B"], "G": gate}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        share = torch.softmax(x.to(w["G"].dtype) @ w["G"].mT, -1).to(x.dtype)  # [k, n, 2], never in half precision
        scale = w["scale"].view(-1, 1, 1)
        x = self.read(w, x)
        own, rest = low_rank_product(x, w["A"] * scale, w["B"]), low_rank_product(x, w["RA"] * scale, w["RB"])
        return share[..., 1:] * own + share[..., :1] * rest
