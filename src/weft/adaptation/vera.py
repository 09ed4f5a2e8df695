"""VeRA (Kopiczko, Blankevoort, Asano, "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv 2310.11454)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.lora import LoRA
from weft.tensors.init import Init
from weft.typed import Whole

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

D_START = 0.1


@dataclass(frozen=True)
class VeRA(LoRA):
    """ΔW = Λ_b B Λ_d A with random frozen A [r, d_in] and B [d_out, r] and trained vectors d [r] = 0.1 and b [d_out] = 0.

    A and B are drawn from the run's seed, one pair for all layers of a shape, and never sent. (PEFT cuts the pairs of all layers
    from one of the largest size.) There is no α. The vectors take the roles of the factors that they stand behind, d that of A
    and b that of B: who shares A and keeps B shares d and keeps b, as in FedSA-VeRA (Guo et al., ICLR 2025).

    Attributes:
        seed: of A and B.
    """

    seed: Whole = 0

    def scale_at(self, site: Site) -> float:
        return 1.0

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        r = self.rank_at(site)
        return {"A": Init((r,), "value", value=torch.full((r,), D_START)), "B": Init((site.d_out,))}

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        r = self.rank_at(site)
        return {"A": r * site.d_in, "B": r * site.d_out}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        d, b = w["A"].to(x.dtype).unsqueeze(1), w["B"].to(x.dtype).unsqueeze(1)
        first, second = projections(self.seed, d.shape[-1], x.shape[-1], b.shape[-1], x.device, x.dtype)
        return (self.read(w, x) @ first.mT * d) @ second.mT * b


@functools.lru_cache(maxsize=64)
def projections(seed: int, rank: int, d_in: int, d_out: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B of all layers of a shape, Kaiming-uniform (He et al., ICCV 2015): U(±√(6 / columns))."""
    found = []
    for role, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
        init = Init(shape, "uniform", math.sqrt(6 / shape[1]))
        found.append(init.draw(seed, "vera", role, d_in, d_out).to(device, dtype))
    return found[0], found[1]
