"""Adapters made by a hypernetwork (D. Ha et al., ICLR 2017, arXiv 1609.09106), of what a client is like and what it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.part import Additive
from weft.adaptation.values import NOWHERE
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Called, Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Context = Annotated[Literal["row", "batch"], Called("context")]
GIVEN_ROLE = "given"
STD = 0.01
EPS = 1e-8
"""Below which a norm is taken for this, where it is divided by."""


@dataclass(frozen=True)
class HyperAdapter(Additive):
    """x + A(x) inside both sublayers of each block, before what they give is added to the residual stream:

        A(x) = U gelu(D x + b_1) + b_2,  with D and U one vector v, read row by row as [d, r] and as [r, d]
        v = e Ĝ,  Ĝ = the rows of P Q + g, of unit length
        e = W_q q + E_l + W_u u + biases

    of a vector q that describes a client, the block l, and u, what the sublayer makes of a row in the mean over its tokens, of
    unit length. One network makes the adapters of all places; what differs between two sublayers of a block is u.

    P [t·r, c] and Q [c, d] ~ N(0, 0.01²), E [blocks, t] ~ N(0, 1), W_q and W_u with their biases uniform on ±1/√(their inputs),
    g, b_1 and b_2 zero. All clients of a federation have one rank: v of another is read in another way.

    Attributes:
        given: length of q, a tensor of the pack called "PART/values/given", of which every entry starts at 1 / its length.
        rank: r. factor: c. embedding: t.
        context: ``row``: u is that of each row, which has an adapter of its own; ``batch``: where a gradient is asked for, u is
            the mean over the client's rows in the pass.
    """

    given: Count
    rank: Count = 16
    factor: Count = 32
    embedding: Count = 8
    context: Context = "row"
    whole_rows: ClassVar[bool] = True

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: its blocks are of several widths, or have no such sublayers.
        """
        found = Bottleneck(placement="sublayers").sites(backbone)
        if len(widths := {s.d_out for s in found}) > 1:
            raise UserError(
                f'the blocks of backbone "{backbone.name}" are {", ".join(map(str, sorted(widths)))} wide, and one network makes '
                "adapters of one width: choose another --model, such as minilm or glyph-vit."
            )
        return [NOWHERE, *found]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        if site != NOWHERE:
            return {}
        d, r, t, n = self._width(backbone), self.rank, self.embedding, self.given
        return {
            GIVEN_ROLE: Init((n,), "value", value=torch.full((n,), 1 / n)),
            "first": Init((t * r, self.factor), "normal", STD),
            "second": Init((self.factor, d), "normal", STD),
            "added": Init((r * d,)),
            "block": Init((len(backbone.blocks), t), "normal"),
            "given_weight": Init((t, n), "uniform", 1 / math.sqrt(n)),
            "given_bias": Init((t,), "uniform", 1 / math.sqrt(n)),
            "context_weight": Init((t, d), "uniform", 1 / math.sqrt(d)),
            "context_bias": Init((t,), "uniform", 1 / math.sqrt(d)),
            "down_bias": Init((r,)),
            "up_bias": Init((d,)),
        }

    def _width(self, backbone: Backbone) -> int:
        return self.sites(backbone)[1].d_out

    def elsewhere(self, backbone: Backbone, site: Site) -> Mapping[str, str]:
        return {} if site == NOWHERE else {role: f"{NOWHERE.name}/{role}" for role in self.tensors(backbone, NOWHERE)}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {} if site == NOWHERE or site.block is None else {"at": float(site.block)}

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Of D and U, behind which P and Q stand."""
        size = self.rank * site.d_out
        return {} if site == NOWHERE else {"first": size, "second": size}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        k, _, d = out.shape
        rows = w["own"].shape[1]
        v = self.made(w, self.describe(w, out.view(k, rows, -1, d))).to(out.dtype)  # of each row, or one of all
        many = v.shape[1]
        h = out.view(k, many, -1, d) @ v.view(k, many, d, self.rank) + w["down_bias"].view(k, 1, 1, -1).to(out.dtype)
        found = F.gelu(h) @ v.view(k, many, self.rank, d) + w["up_bias"].view(k, 1, 1, -1).to(out.dtype)
        return found.view_as(out)

    def describe(self, w: Mapping[str, Tensor], s: Tensor) -> Tensor:
        """e [k, b, t] of hidden states [k, b, T, d]; [k, 1, t] if the rows of a client have one."""
        own = w["own"].unsqueeze(-1)
        dtype = w["block"].dtype
        u = F.normalize((s.to(dtype) * own).sum(2), dim=-1, eps=EPS)  # a sum has the direction of the mean
        if self.context == "batch" and torch.is_grad_enabled():
            valid = own.any(2)
            u = (u * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        at = w["at"].long().view(-1, 1, 1).expand(-1, 1, self.embedding)
        given = w[GIVEN_ROLE].unsqueeze(1) @ w["given_weight"].mT + w["given_bias"].unsqueeze(1)
        return given + w["block"].gather(1, at) + u @ w["context_weight"].mT + w["context_bias"].unsqueeze(1)

    def made(self, w: Mapping[str, Tensor], e: Tensor) -> Tensor:
        """v [k, b, r·d] of descriptions e [k, b, t]."""
        rows = (w["first"] @ w["second"]).view(len(e), self.embedding, -1) + w["added"].unsqueeze(1)
        return e @ F.normalize(rows, dim=-1, eps=EPS)
