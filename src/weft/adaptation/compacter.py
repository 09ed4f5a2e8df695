"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products.

R. Karimi Mahabadi, J. Henderson, S. Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021, arXiv
2106.04647, on the layers of A. Zhang et al., ICLR 2021, arXiv 2102.08597.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.bottleneck import Activation, Bottleneck, Inserted, Placement, Scaling
from weft.adaptation.values import NOWHERE
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Count, NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

RULE = "rule"


@dataclass(frozen=True)
class Compacter(Inserted):
    """s·A(h) with A(h) = U·σ(D h + b_D) + b_U, where D [m, d] = Σ_i A_i ⊗ s_i t_i over n products, and likewise U [d, m].

    A_i [n, n] are common to all matrices of all adapters; s_i [m/n, r] and t_i [r, d/n] are each matrix's own. A ~ N(0, std²), s
    and t normal with the variance 2 / (rows + columns), biases 0.

    Attributes:
        n: products, which divide the hidden size. rank: r.
        reduction: the hidden size over the bottleneck's, m; it is brought up to the next multiple of n.
        std: of the start values of A. placement, activation, scaling: as of :class:`weft.adaptation.bottleneck.Bottleneck`.
    """

    n: Count = 4
    rank: Count = 1
    reduction: Count = 16
    std: NonNegative = 0.01
    placement: Placement = "sublayers"
    activation: Activation = "gelu_new"
    scaling: Scaling | None = None

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: a hidden size is no multiple of n, or there is no place for an adapter.
        """
        found = Bottleneck(placement=self.placement).sites(backbone)
        if odd := [s.d_out for s in found if s.d_out % self.n]:
            raise UserError(
                f'{self.n} Kronecker products can\'t make up the {odd[0]} features of backbone "{backbone.name}": choose a '
                "number that divides them."
            )
        return [NOWHERE, *found]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        n, r = self.n, self.rank
        if site == NOWHERE:
            return {RULE: Init((n, n, n), "normal", self.std)}
        d, m = site.d_out, self.width(site.d_out)
        sizes = {"down_left": (m // n, r), "down_right": (r, d // n), "up_left": (d // n, r), "up_right": (r, m // n)}
        factors = {role: Init((n, *size), "normal", math.sqrt(2 / sum(size))) for role, size in sizes.items()}
        return factors | {"down_bias": Init((m,)), "up_bias": Init((d,))} | self.learned()

    def width(self, d: int) -> int:
        """Of the bottleneck, of d features."""
        m = max(d // self.reduction, 1)
        return -(-m // self.n) * self.n

    def elsewhere(self, backbone: Backbone, site: Site) -> Mapping[str, str]:
        return {} if site == NOWHERE else {RULE: f"{NOWHERE.name}/{RULE}"}

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Of D and U, behind which their factors stand."""
        if site == NOWHERE:
            return {}
        size = self.width(site.d_out) * site.d_out
        return {"down_left": size, "up_left": size}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        return self.scaled(w, x, out, self.matrix(w, "down"), self.matrix(w, "up"))

    def matrix(self, w: Mapping[str, Tensor], side: str) -> Tensor:
        """Σ_i A_i ⊗ s_i t_i of each client, [k, rows, columns]; ``side`` is ``down`` or ``up``."""
        inner = w[f"{side}_left"] @ w[f"{side}_right"]  # [k, n, rows / n, columns / n]
        found = torch.einsum("kiab,kipq->kapbq", w[RULE], inner)
        return found.reshape(len(inner), self.n * inner.shape[2], self.n * inner.shape[3])
