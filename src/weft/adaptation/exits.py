"""Exits: an inner block's hidden states go the model's own way to logits, through a head of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from weft.adaptation.head import ChosenHead
from weft.backbones.model_site import Site
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


@dataclass(frozen=True)
class Exit(ChosenHead):
    """A copy of the head that reads what leaves an inner block, as BranchyNet (Teerapittayanon et al., ICPR 2016, arXiv
    1709.01686) and its successors put one after each stage. The pooling and the final norm on the way are the model's own.

    A language model keeps its frozen output layer; there the exit is a scale and a shift of each feature [d] before the final
    norm, the diagonal of a tuned lens (Belrose et al., 2023, arXiv 2303.08112).

    Only :meth:`weft.federation.passes.Passes.exits` reads it: it takes no part in any other pass.
    """

    def sites(self, backbone: Backbone) -> list[Site]:
        return super().sites(backbone) or [Site("lens", "values", backbone.d, backbone.d, block=None)]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        if site.role == "values":
            return {"scale": Init((site.d_in,), "ones"), "shift": Init((site.d_in,))}
        return super().tensors(backbone, site)

    @staticmethod
    def lens(w: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Hidden states [k, n, d] as the tail of a language model reads them; ``w`` has ``scale`` and ``shift`` [k, d]."""
        return (hidden.to(w["scale"]) * w["scale"].unsqueeze(1) + w["shift"].unsqueeze(1)).to(hidden.dtype)
