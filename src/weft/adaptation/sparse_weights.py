"""Some entries of frozen matrices, at places drawn at random, which are trained as what they change by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.tensors.init import Init
from weft.typed import Count, Portion

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class SparseWeights(Additive):
    """ΔW = the matrix that is 0 but for n entries, beside a frozen linear layer; their values [n] begin at 0.

    Which entries these are follows from the run's seed and the layer's name; ``places`` [2, n], their rows and columns, are a
    start value that everybody draws for himself. They have the scope GIVEN, and nobody writes them.

    Attributes:
        density: the share of a matrix's entries, n = round(density · d_out · d_in). None: as many as a LoRA of ``rank`` has
            there, n = rank (d_in + d_out).
        rank: see ``density``.
        at: which linear layers, see :meth:`weft.backbones.backbone.Backbone.sites`.
    """

    density: Portion | None = None
    rank: Count = 8
    at: str = "q,v"

    def count(self, site: Site) -> int:
        """n, at least 1 and at most all."""
        whole = site.d_out * site.d_in
        wanted = self.rank * (site.d_in + site.d_out) if self.density is None else round(self.density * whole)
        return min(max(wanted, 1), whole)

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.sites(self.at)

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        n = self.count(site)
        return {"value": Init((n,)), "places": Init((2, n), "places", of=(site.d_out, site.d_in))}

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        return {"value": self.count(site)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        # they are the same for all clients of a pack, but for zeros at those who lack the part here
        places = w["places"]
        rows, columns = (places[0] if places.stride(0) == 0 else places.amax(0)).long()
        value = w["value"]
        if value.stride(0) == 0 and not value.requires_grad:  # one value for all: one matrix, and one product over all rows
            value = value[:1]
        product: Tensor = SparseProduct.apply(x, value, rows * x.shape[-1] + columns, out.shape[-1])
        return product


class SparseProduct(torch.autograd.Function):
    """x ΔWᵀ [k, n, d_out] for x [k, n, d_in], values [k, m] (or [1, m], for all) and their places [m] in a matrix of d_out rows.

    The matrices are written out for as long as a product takes, and anew in the backward pass: what is kept for that is x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, flat: Tensor, d_out: int) -> Tensor:
        ctx.save_for_backward(x, value, flat)
        ctx.d_out = d_out
        return x @ _written_out(value.to(x.dtype), flat, d_out, x.shape[-1]).mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, value, flat = ctx.saved_tensors
        of_x = of_value = None
        if ctx.needs_input_grad[0]:
            of_x = grad @ _written_out(value.to(x.dtype), flat, ctx.d_out, x.shape[-1])
        if ctx.needs_input_grad[1]:
            of_value = (grad.mT @ x).flatten(1)[:, flat].to(value.dtype).sum_to_size(value.shape)
        return of_x, of_value, None, None


def _written_out(value: Tensor, flat: Tensor, d_out: int, d_in: int) -> Tensor:
    """[k, d_out, d_in] that is 0 but for ``value`` [k, m] at ``flat`` [m]."""
    return value.new_zeros(len(value), d_out * d_in).index_copy(1, flat, value).view(-1, d_out, d_in)
