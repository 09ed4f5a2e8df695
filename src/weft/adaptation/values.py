"""Tensors of a method that sit in no layer: tables of logits, class means … They travel and are kept like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.backbones.model_site import Site
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

NOWHERE = Site("values", "values", 0, 0, block=None)
"""Of tensors that sit in no layer."""


@dataclass(frozen=True)
class Values(Additive):
    """Named tensors.

    Attributes:
        shapes: pairs of a name and a shape, of what is zero at the start, or of a name and a start value. A pack holds them as
            "PART/values/NAME".
    """

    shapes: tuple[tuple[str, tuple[int, ...] | Init], ...]

    def sites(self, backbone: Backbone) -> list[Site]:
        return [NOWHERE]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {name: start if isinstance(start, Init) else Init(start) for name, start in self.shapes}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        raise AssertionError("a part without a layer has nothing to apply")
