"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) and a frozen low-rank delta, both with a client axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from weft.adaptation.dropout import dropped
from weft.adaptation.part import Additive
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Count, Positive, Whole

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


Scaling = Literal["usual", "rslora"]
Dropped = Annotated[float, Ge(0), Lt(1)]


def low_rank_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x Aᵀ Bᵀ for [k, n, d_in], [k, r, d_in], [k, d_out, r] -> [k, n, d_out], in the dtype of x."""
    if a.stride(0) == 0 and b.stride(0) == 0:  # one value for all clients of the pack: one product over all rows
        return x @ a[0].to(x.dtype).mT @ b[0].to(x.dtype).mT
    return torch.bmm(torch.bmm(x, a.to(x.dtype).mT), b.to(x.dtype).mT)


@dataclass(frozen=True)
class LoRA(Additive):
    """ΔW = s·B A beside a frozen linear layer; A [r, d_in] ~ U(±1/√d_in), B [d_out, r] = 0.

    Attributes:
        rank: r. alpha: α; the scale s is α/r.
        at: which linear layers, see :meth:`weft.backbones.backbone.Backbone.sites`.
        ffn_rank: another rank for the feed-forward layers. blocks: only in these; None = in all.
        growth: by how much a block's rank is above that of the block before it; all have the scale of block 0.
        of: the rank of the LoRA whose leading part this is (HeteroFL, FjORD): its start values are the leading ones of that.
        scaling: what s is: ``usual``, α/r; or ``rslora``, α/√r (Kalajdzievski, "A Rank Stabilization Scaling Factor for
            Fine-Tuning with LoRA", arXiv 2312.03732).
        ratio: the learning rate of B over that of A (LoRA+: Hayou, Ghosh, Yu, "LoRA+: Efficient Low Rank Adaptation of Large
            Models", ICML 2024, arXiv 2402.12354).
        dropout: share of x that is dropped before A in steps of training.
    """

    rank: Count
    alpha: Positive
    at: str = "q,v"
    ffn_rank: Count | None = None
    blocks: tuple[Whole, ...] | None = None
    growth: Whole = 0
    of: Count | None = None
    scaling: Scaling = "usual"
    ratio: Positive = 1.0
    dropout: Dropped = 0.0

    def leading(self, share: float) -> LoRA:
        """Its first ⌈share · r⌉ ranks, with the same scale α/r."""
        rank = math.ceil(share * self.rank - 1e-9)  # 0.2 · 15 is more than 3 in floating point
        return replace(self, rank=rank, alpha=self.alpha * rank / self.rank, of=self.rank)

    def rank_at(self, site: Site) -> int:
        return self._first(site) + self.growth * (site.block or 0)

    def _first(self, site: Site) -> int:
        """The rank in block 0."""
        return self.ffn_rank if self.ffn_rank is not None and site.role.startswith("ffn") else self.rank

    def scale_at(self, site: Site) -> float:
        """s: of a leading part, that of the whole."""
        rank = self._first(site)
        usual = self.alpha / rank
        return usual if self.scaling == "usual" else usual * math.sqrt(rank if self.of is None else self.of)

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.sites(self.at, self.blocks)

    def check_ranks(self, backbone: Backbone) -> None:
        """
        Raises:
            UserError: it has more ranks than a layer of a block. A head of few classes may have more beside it.
        """
        for site in self.sites(backbone):
            if site.block is not None and (rank := self.rank_at(site)) > (most := min(site.d_in, site.d_out)):
                raise UserError(
                    f'LoRA of rank {rank} is more than {site.name} of "{backbone.name}" has, which is {site.d_out} x '
                    f"{site.d_in}: choose ranks up to {most}."
                )

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        r = self.rank_at(site)
        whole = r if self.of is None else self.of
        return {
            "A": Init((r, site.d_in), "uniform", 1 / math.sqrt(site.d_in), within=(whole, site.d_in)),
            "B": Init((site.d_out, r), within=(site.d_out, whole)),
        }

    def constants(self, site: Site) -> Mapping[str, float]:
        return {"scale": self.scale_at(site)}

    @property
    def rates(self) -> Mapping[str, float]:
        return {"B": self.ratio} if self.ratio != 1 else {}

    def read(self, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """What A sees of x."""
        return dropped(x, w["keys"], self.dropout) if "keys" in w else x

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        # the scale goes onto the small factor: r·d_in products instead of n·d_out
        return low_rank_product(self.read(w, x), w["A"] * w["scale"].view(-1, 1, 1), w["B"])


@dataclass(frozen=True)
class Delta(Additive):
    """A frozen low-rank change of the base weights that grows over the rounds (FLoRA, FedEx-LoRA, FRLoRA).

    It stays beside the weight instead of being merged: adding a small delta to int8 or bfloat16 weights loses half of it or
    more. Its value per site is one :class:`weft.tensors.lowrank.LowRank`, rank 0 at the start.
    """

    at: str = "q,v"
    always = True

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.sites(self.at)

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {"delta": Init((site.d_out, site.d_in), "lowrank")}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        return low_rank_product(x, w["delta.A"], w["delta.B"])
