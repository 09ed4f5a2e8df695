"""Learned scales of what layers give, with a client axis: IA³, and with a shift SSF.

H. Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022, arXiv
2205.05638. D. Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022, arXiv
2210.08823.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from weft.adaptation.dora import product
from weft.adaptation.part import Additive
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

IA3 = "k,v,ffn.out"


@dataclass(frozen=True)
class Scale(Additive):
    """γ ⊙ f in the place of what a layer gives, f [d_out], or γ ⊙ f + β with a shift; γ is 1 at the start and β 0.

    Without a shift the layer that ends a feed-forward (``ffn.out``) has its input scaled instead, γ [d_in]: IA³ scales the
    activations inside a feed-forward.

    Attributes:
        at: which linear layers, see :meth:`weft.backbones.backbone.Backbone.sites`; None = as the paper has it: ``k,v,ffn.out``
            of IA³; of SSF all linear layers, convolutions and norms.
        shift: with β.
    """

    at: str | None = None
    shift: bool = False

    def sites(self, backbone: Backbone) -> list[Site]:
        if self.at is not None or not self.shift:
            return backbone.sites(IA3 if self.at is None else self.at)
        return [*backbone.linears, *backbone.norms, *backbone.patches, *backbone.convolutions]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        if self.shift:
            return {"scale": Init((site.d_out,), "ones"), "shift": Init((site.d_out,))}
        return {"inner": Init((site.d_in,), "ones")} if "ffn.out" in site.roles else {"scale": Init((site.d_out,), "ones")}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        if "inner" in w:
            return product(module, _gain(w["inner"], x) * x)
        scaled = _gain(w["scale"], out) * out
        return scaled + w["shift"].unsqueeze(1).to(out.dtype) if "shift" in w else scaled


def _gain(scale: Tensor, of: Tensor) -> Tensor:
    """γ - 1, [k, 1, d], exactly 0 at the start."""
    return (scale - 1).unsqueeze(1).to(of.dtype)
