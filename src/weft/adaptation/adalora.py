"""AdaLoRA (Zhang, Chen, Bukharin, He et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023,
arXiv 2303.10512) with a client axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from weft.adaptation.lora import LoRA, low_rank_product
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

START = 0.02
ORTHOGONAL = 0.1
"""γ, of the authors' code for most sets; PEFT's default is 0.5."""


@dataclass(frozen=True)
class AdaLoRA(LoRA):
    """ΔW = s · B diag(E) A in the place of a singular value decomposition; A [r, d_in] and B [d_out, r] ~ N(0, 0.02²), E [r] = 0.

    To the loss of a step comes γ times the mean of ‖A Aᵀ - I‖_F and ‖Bᵀ B - I‖_F over all layers, as in the authors' code and
    PEFT; the paper has the sum of their squares. Which triplets (E_i, A_i, B_i) stay says the server, see
    :mod:`weft.rules.budget`.

    Attributes:
        target: ranks that a layer keeps on average; None = two thirds of r, as the paper begins with 1.5 times as many.
    """

    target: Count | None = None
    in_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.target > self.rank and not self.growth:
            raise UserError(f"lora.target is {self.target}, above the rank of {self.rank} that it prunes: choose a smaller one.")

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        r = self.rank_at(site)
        whole = r if self.of is None else self.of
        return {
            "A": Init((r, site.d_in), "normal", START, within=(whole, site.d_in)),
            "B": Init((site.d_out, r), "normal", START, within=(site.d_out, whole)),
            "E": Init((r,), within=(whole,)),
        }

    def plain(self) -> LoRA:
        """The LoRA with E among its factors."""
        return LoRA(**{f.name: getattr(self, f.name) for f in fields(LoRA)})

    def kept_at(self, site: Site) -> int:
        """Ranks of this layer that the last budget has room for, which other layers may take."""
        rank = self.rank_at(site)
        return max(1, rank * 2 // 3) if self.target is None else min(self.target, rank)

    def constants(self, site: Site) -> Mapping[str, float]:
        return {**super().constants(site), "ranks": float(self.rank_at(site))}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        values = (w["E"] * w["scale"].view(-1, 1)).unsqueeze(2)
        return low_rank_product(self.read(w, x), w["A"] * values, w["B"])

    def penalty(self, w: Mapping[str, Tensor]) -> Tensor:
        a, b = w["A"], w["B"]
        own = torch.arange(a.shape[1], device=a.device) < w["ranks"].view(-1, 1)  # what pads a client is 0
        unit = torch.diag_embed(own.to(a))
        gaps = a @ a.mT - unit, b.mT @ b - unit
        return ORTHOGONAL / 2 * sum(torch.linalg.vector_norm(gap, dim=(1, 2)) for gap in gaps)
