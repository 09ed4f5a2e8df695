"""LoRA that begins as a part of the weights that it is beside: PiSSA and OLoRA, with a client axis.

F. Meng, Z. Wang, M. Zhang, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models", NeurIPS
2024, arXiv 2404.02948. K. Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv 2406.01775. Both
as in PEFT (peft 0.21.2, ``LoraLayer.pissa_init`` and ``olora_init``).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from weft.adaptation.lora import LoRA, low_rank_product
from weft.errors import UserError
from weft.tensors.init import Init, leading
from weft.tensors.keyed import generator
from weft.tensors.principal import principal

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Begins = Literal["pissa", "olora"]

_CUTS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int, float], tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()
"""Of frozen layers, which all clients and rounds ask for."""


@dataclass(frozen=True)
class FromWeights(LoRA):
    """ΔW = s (B A - B0 A0), from A0 and B0 that are cut from W0; A and B begin there.

    The papers take s B0 A0 away from W0 once. Here the weights stay the pretrained ones, and -s B0 A0, which everybody computes
    from their own, stands beside them: nothing of it travels, and what is exported goes onto the pretrained model.

    Attributes:
        begins: with W0 = U S Vᵀ, ``pissa``: B0 = U_r (S_r/s)^½ and A0 = (S_r/s)^½ V_rᵀ, of the leading r triplets; with W0 = Q R,
            ``olora``: B0 = Q_r and A0 = R_r, the first r columns and rows.
    """

    begins: Begins = "pissa"

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        r = self.rank_at(site)
        b, a = cut(backbone, site, self.begins, r if self.of is None else self.of, self.scale_at(site))
        return {
            "A": Init((r, site.d_in), "value", value=a, within=tuple(a.shape)),
            "B": Init((site.d_out, r), "value", value=b, within=tuple(b.shape)),
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        scale = w["scale"].view(-1, 1, 1)
        a0, b0 = w["A.start"].to(w["A"]), w["B.start"].to(w["B"])
        read = self.read(w, x)
        if read is x:
            a, b = change(w["A"], w["B"], a0, b0)
            return low_rank_product(x, a * scale, b)
        # what is dropped is dropped before A; the weights, and so -s B0 A0, see all
        return low_rank_product(read, w["A"] * scale, w["B"]) - low_rank_product(x, a0 * scale, b0.expand_as(w["B"]))

    def doubled(self) -> LoRA:
        """The plain LoRA of twice the rank and the same s, for factors as :func:`change` makes them."""
        alpha = self.alpha * (2 if self.scaling == "usual" else math.sqrt(2))
        ffn, of = (None if rank is None else 2 * rank for rank in (self.ffn_rank, self.of))
        own = (2 * self.rank, alpha, self.at, ffn, self.blocks, 2 * self.growth, of)
        return LoRA(*own, self.scaling, self.ratio, self.dropout)

    def start(self, backbone: Backbone, site: Site) -> tuple[Tensor, Tensor]:
        """A0 [r, d_in] and B0 [d_out, r], in single precision on the CPU."""
        r = self.rank_at(site)
        b, a = cut(backbone, site, self.begins, r if self.of is None else self.of, self.scale_at(site))
        return leading(a, (r, site.d_in)), leading(b, (site.d_out, r))


def change(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """Factors [..., 2r, d_in] and [..., d_out, 2r] of B A - B0 A0 = B (A - A0) + (B - B0) A0, in which no large terms cancel:
    what has not moved is exactly 0, in any precision.
    """
    return torch.cat([a - a0, a0.expand_as(a)], -2), torch.cat([b, b - b0], -1)


def cut(backbone: Backbone, site: Site, begins: Begins, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """B0 [d_out, r] and A0 [r, d_in] in single precision, in which start values travel; for each layer computed once.

    From W0 in double precision, with the signs chosen: the same everywhere but for the last bits.

    Raises:
        UserError: the matrix has fewer ranks.
    """
    if rank > min(site.d_out, site.d_in):
        raise UserError(
            f'rank {rank} is more than {site.name} has, a matrix of {site.d_out} x {site.d_in}, so that lora.start = "{begins}" '
            "can't cut it from there: choose a smaller rank, or leave lora.start out."
        )
    known = _CUTS.setdefault(backbone.module(site.name), {})
    key = (begins, rank, scale)
    if key not in known:
        weight = backbone.weight(site).double()
        b, a = _pissa(weight, site, rank, scale) if begins == "pissa" else _olora(weight, rank)
        known[key] = b.float(), a.float()
    return known[key]


def _pissa(weight: Tensor, site: Site, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    u, d, vh = principal(weight, rank, generator(0, "pissa", site.name))
    root = (d / scale).sqrt()
    return u * root, root[:, None] * vh


def _olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Of the first r columns alone, of which the first r columns of Q are; the diagonal of R is positive."""
    q, r = torch.linalg.qr(weight[:, :rank])
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q, q.mT @ weight
