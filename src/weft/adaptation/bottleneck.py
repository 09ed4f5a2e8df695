"""Bottleneck adapters: after each block (Pfeiffer et al., EACL 2021), inside its sublayers (Houlsby et al., ICML 2019), or beside
its feed-forward (He et al., ICLR 2022, arXiv 2110.04366).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.backbones.describe import feed_forward_entry
from weft.errors import UserError
from weft.tensors.init import Init, drawn_like
from weft.typed import Called, Count, NonNegative, Positive

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Placement = Annotated[Literal["block", "ffn", "sublayers", "parallel"], Called("placement")]
Activation = Annotated[Literal["relu", "gelu_new"], Called("activation")]
Scaling = Positive | Literal["learned"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu_new": partial(F.gelu, approximate="tanh")}
SUBLAYERS = {"ffn": ("ffn.out",), "sublayers": ("o", "ffn.out"), "parallel": ("ffn.out",)}
"""Placement -> roles of the linear layers whose output an adapter changes."""
BESIDE = 4.0
"""s of He et al., for adapters beside a feed-forward."""


class Inserted(Additive):
    """s·A(h) with A(h) = U·σ(D h + b_D) + b_U, at one of four placements: what all adapters of this shape share.

    Attributes:
        scaling: s; ``learned``: a tensor that begins at 1; None = 4 of ``parallel`` adapters, and 1 of others.
    """

    placement: Placement
    activation: Activation
    scaling: Scaling | None

    def constants(self, site: Site) -> Mapping[str, float]:
        if self.scaling == "learned":
            return {}
        usual = BESIDE if self.placement == "parallel" else 1.0
        return {"scaling": usual if self.scaling is None else float(self.scaling)}

    def learned(self) -> dict[str, Init]:
        """s, if it is a tensor."""
        return {"scaling": Init((1,), "value", value=torch.ones(1))} if self.scaling == "learned" else {}

    def scaled(self, w: Mapping[str, Tensor], x: Tensor, out: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """s·A of what the placement reads, [k, n, d].

        Args:
            x, out: of ``apply``. down, up: D [k, m, d] and U [k, d, m].
        """
        dtype, s = out.dtype, w["scaling"].view(-1, 1)
        h = x.to(dtype) if self.placement == "parallel" else out
        h = torch.bmm(h, down.to(dtype).mT) + w["down_bias"].unsqueeze(1).to(dtype)
        h = FUNCTIONS[self.activation](h)
        return torch.bmm(h, (up * s.unsqueeze(-1)).to(dtype).mT) + (w["up_bias"] * s).unsqueeze(1).to(dtype)


@dataclass(frozen=True)
class Bottleneck(Inserted):
    """s·A(h) with A(h) = U·σ(D h + b_D) + b_U, D [d/r, d] and U [d, d/r].

    After a block its place is found by the backbone's structure: in pre-norm blocks the block's output x becomes x + s·A(x); in
    post-norm blocks (BERT), whose last step is z = LN(y), the output becomes LN(y + s·A(z)). Inside a sublayer the output f of
    its last linear layer becomes f + s·A(f), before it is added to the residual stream and whatever norm follows. Beside a
    feed-forward, f(x) becomes f(x) + s·A(x) there, with x what its first linear layer reads: in pre-norm blocks, what the norm
    gives.

    Attributes:
        reduction: r; the bottleneck is d // r wide (at least 1).
        std: of the normal start values of D and U; biases start at 0.
        placement: ``block`` (one after each block), ``ffn`` (one in its feed-forward sublayer), ``sublayers`` (two, in its
            attention and its feed-forward) or ``parallel`` (one beside its feed-forward).
        activation: σ, ``relu`` or ``gelu_new`` (GELU by its tanh approximation).
        up_std: of the start values of U; None = as D's, but 0 of ``parallel`` adapters; 0 = the model begins as the frozen one.
        like: the part as which start values are drawn, so that several adapters begin alike; "" = its own name.
        scaling: s, see :class:`Inserted`.
    """

    reduction: Count = 16
    std: NonNegative = 0.02
    placement: Placement = "block"
    activation: Activation = "relu"
    up_std: NonNegative | None = None
    like: str = ""
    scaling: Scaling | None = None

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
        found = backbone.sites(",".join(SUBLAYERS[self.placement]))
        return [beside(backbone, site) for site in found] if self.placement == "parallel" else found

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        d = site.d_out
        m = self.width(d)
        usual = 0.0 if self.placement == "parallel" else self.std
        tensors = {
            "down": Init((m, site.d_in if self.placement == "parallel" else d), "normal", self.std),
            "down_bias": Init((m,)),
            "up": Init((d, m), "normal", usual if self.up_std is None else self.up_std),
            "up_bias": Init((d,)),
        }
        return drawn_like(self.like, tensors | self.learned())

    def width(self, d: int) -> int:
        """Of the bottleneck, of d features."""
        return max(d // self.reduction, 1)

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        return self.scaled(w, x, out, w["down"], w["up"])


def beside(backbone: Backbone, end: Site) -> Site:
    """The last linear layer of a feed-forward, for what reads the input of its first.

    Raises:
        UserError: its block has no such layer.
    """
    entry = feed_forward_entry(backbone.linears, end)
    if entry is None:
        raise UserError(
            f'block {end.block} of backbone "{backbone.name}" has no layer "ffn.in" beside which an adapter could be: set '
            "placement to ffn or block, or name the layer with --roles."
        )
    return replace(end, reads=entry.name, d_in=entry.d_in)
