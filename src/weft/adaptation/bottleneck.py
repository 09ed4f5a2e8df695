"""Bottleneck adapters, after each block (Pfeiffer et al., EACL 2021) or inside its sublayers (Houlsby et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.errors import UserError
from weft.tensors.init import Init, drawn_like
from weft.typed import Called, Count, NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Site

Placement = Annotated[Literal["block", "ffn", "sublayers"], Called("placement")]
Activation = Annotated[Literal["relu", "gelu_new"], Called("activation")]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu_new": partial(F.gelu, approximate="tanh")}
SUBLAYERS = {"ffn": ("ffn.out",), "sublayers": ("o", "ffn.out")}
"""Placement -> roles of the linear layers whose output an adapter changes."""


@dataclass(frozen=True)
class Bottleneck(Additive):
    """A(h) = U·σ(D h + b_D) + b_U with D [d/r, d] and U [d, d/r].

    After a block its place is found by the backbone's structure: in pre-norm blocks the block's output x becomes x + A(x); in
    post-norm blocks (BERT), whose last step is z = LN(s), the output becomes LN(s + A(z)). Inside a sublayer the output f of its
    last linear layer becomes f + A(f), before it is added to the residual stream and whatever norm follows.

    Attributes:
        reduction: r; the bottleneck is d // r wide (at least 1).
        std: of the normal start values of D and U; biases start at 0.
        placement: ``block`` (one after each block), ``ffn`` (one in its feed-forward sublayer) or ``sublayers`` (two, in its
            attention and its feed-forward).
        activation: σ, ``relu`` or ``gelu_new`` (GELU by its tanh approximation).
        up_std: of the start values of U, where they have another than D's; 0 = the model begins as the frozen one.
        like: the part as which start values are drawn, so that several adapters begin alike; "" = its own name.
    """

    reduction: Count = 16
    std: NonNegative = 0.02
    placement: Placement = "block"
    activation: Activation = "relu"
    up_std: NonNegative | None = None
    like: str = ""

    def sites(self, backbone: Backbone) -> list[Site]:
        backbone.check_blocks()
        if self.placement == "block":
            return backbone.bottlenecks
        for role in SUBLAYERS[self.placement]:
            missing = set(range(len(backbone.blocks))) - {s.block for s in backbone.linears if role in s.roles}
            if missing:
                raise UserError(
                    f'block {min(missing)} of backbone "{backbone.name}" has no layer "{role}" that an adapter could follow: set '
                    "placement to block, or name the layer with --roles."
                )
        return backbone.sites(",".join(SUBLAYERS[self.placement]))

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        d = site.d_out
        m = max(d // self.reduction, 1)
        tensors = {
            "down": Init((m, d), "normal", self.std),
            "down_bias": Init((m,)),
            "up": Init((d, m), "normal", self.std if self.up_std is None else self.up_std),
            "up_bias": Init((d,)),
        }
        return drawn_like(self.like, tensors)

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        dtype = out.dtype
        h = torch.bmm(out, w["down"].to(dtype).mT) + w["down_bias"].unsqueeze(1).to(dtype)
        h = FUNCTIONS[self.activation](h)
        return torch.bmm(h, w["up"].to(dtype).mT) + w["up_bias"].unsqueeze(1).to(dtype)
