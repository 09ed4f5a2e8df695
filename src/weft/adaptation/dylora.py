"""DyLoRA (Valipour, Rezagholizadeh, Kobyzev, Ghodsi, "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic
Search-Free Low-Rank Adaptation", EACL 2023, arXiv 2210.07558): any leading ranks of what was trained are a LoRA by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from weft.adaptation.dropout import BITS, mixed
from weft.adaptation.lora import LoRA

if TYPE_CHECKING:
    from weft.backbones.model_site import Site

_RANKS = 0x7A6E_9D3B_51C2_08F5
"""Sets what is drawn here apart from other uses of a step's keys."""


@dataclass(frozen=True)
class DyLoRA(LoRA):
    """In each step of training every client draws b in 1 … r, each as likely, and in all layers ΔW is α/b · B[:, :b] A[:b]; all
    else, scores and files too, is of r ranks. Of layers with several ranks each has the same share of its own.

    The paper's other mode moves the b-th rank alone; this is the one in which all b move.
    """

    in_steps: ClassVar[bool] = True

    def constants(self, site: Site) -> Mapping[str, float]:
        return {**super().constants(site), "ranks": float(self.rank_at(site))}

    def drawn(self, w: Mapping[str, Tensor], keys: Tensor) -> Mapping[str, Tensor]:
        share = (mixed(keys ^ _RANKS) & ((1 << BITS) - 1)).to(torch.float64) / (1 << BITS)
        b = 1 + (share.to(w["ranks"].device) * w["ranks"].to(torch.float64)).floor()
        stays = torch.arange(w["A"].shape[1], device=b.device) < b[:, None]
        factor = (w["ranks"] / b).to(w["A"])  # from α/r to α/b
        if self.scaling == "rslora":
            factor = factor.sqrt()
        return {"A": w["A"] * (stays.to(w["A"]) * factor[:, None])[..., None]}
