"""A stack of bottleneck adapters after each block, one after another, that grows by whole adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.backbones.describe import is_norm
from weft.tensors.init import Init
from weft.typed import Count, NonNegative, Whole

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class StackedBottleneck(Additive):
    """Units A_u(h) = U_u ReLU(D_u h + b_u) + b'_u with D_u [m, d] and U_u [d, m], each of what those before it have left.

    They are at the place of a :class:`weft.adaptation.bottleneck.Bottleneck` with the placement ``block``. In pre-norm blocks the
    output h becomes h + A_u(h), unit by unit. In post-norm blocks (BERT), whose last step is LN(s), s becomes s + A_u(LN(s)),
    unit by unit, and the output is LN(s): AdapterHub's ``Stack`` of Pfeiffer adapters (EACL 2021). One unit is that Bottleneck.

    Tensors of all units lie in one, [units, …]: a smaller stack is the leading slice of a larger one.

    Attributes:
        units: how many. width: m.
        of: units of the stack whose leading part this is: its start values are the leading ones of that.
        blocks: only in these; None = in all.
        std: of the normal start values of D and U; biases start at 0.
    """

    units: Count = 1
    width: Count = 8
    of: Count | None = None
    blocks: tuple[Whole, ...] | None = None
    std: NonNegative = 0.02

    def sites(self, backbone: Backbone) -> list[Site]:
        backbone.check_blocks()
        return [site for site in backbone.bottlenecks if self.blocks is None or site.block in self.blocks]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        d, m = site.d_out, self.width
        whole = self.units if self.of is None else self.of

        def init(*size: int, kind: str = "zeros") -> Init:
            return Init((self.units, *size), kind, self.std, within=(whole, *size))

        return {
            "down": init(m, d, kind="normal"),
            "down_bias": init(m),
            "up": init(d, m, kind="normal"),
            "up_bias": init(d),
        }

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Of D and U; biases have two axes here, too."""
        size = self.units * self.width * site.d_out
        return {"down": size, "up": size}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {"units": float(self.units)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        dtype, before_norm = out.dtype, is_norm(module)
        down, up = w["down"].to(dtype), w["up"].to(dtype)
        units = up.shape[1]
        # of a client with fewer units the others are zeros, but their last bias alone would still have a gradient
        own = torch.arange(units, device=out.device) < w["units"].unsqueeze(1)
        down_bias, up_bias = w["down_bias"].to(dtype), w["up_bias"].to(dtype) * own.unsqueeze(-1)
        h, total = out, torch.zeros_like(out)
        for u in range(units):
            if u:
                h = module.forward(x + total) if before_norm else out + total
            hidden = torch.relu(torch.bmm(h, down[:, u].mT) + down_bias[:, u].unsqueeze(1))
            total = total + torch.bmm(hidden, up[:, u].mT) + up_bias[:, u].unsqueeze(1)
        return total
