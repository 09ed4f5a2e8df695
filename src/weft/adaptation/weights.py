"""The backbone's own parameters: full fine-tuning, or that of some of them by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.backbones.backbone import TEXT_TOWER
from weft.backbones.describe import block_index
from weft.backbones.model_site import Site
from weft.backbones.quantised import is_quantised
from weft.errors import UserError
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


@dataclass(frozen=True)
class Weights(Additive):
    """Whole parameters, started at their pretrained values; for a pass they stand in the modules in the place of the frozen ones.

    Modules compute with them as they ever do, so that any kind of module will do. Parameters that are tied are one tensor, called
    by the first of its names. Those of the head are not among them: it is a part of its own.

    Attributes:
        which: ``all``, those inside the ``blocks``, or patterns of their names such as ``*.layer.5.*``; several joined by commas.
    """

    which: str = "all"
    mode: ClassVar[Mode] = "parameters"
    alone: ClassVar[bool] = True

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: the weights are quantised, or none is called like that.
        """
        if is_quantised(backbone.model):
            raise UserError(
                f'the weights of backbone "{backbone.name}" are quantised, so that they can\'t be trained themselves: load it in '
                "full precision (without --quantise, or from another checkpoint), or tune LoRA instead."
            )
        blocks: dict[str, set[int | None]] = {}
        for name, places in backbone.own.items():
            if self._means(name, backbone):
                blocks.setdefault(name.rpartition(".")[0], set()).update(block_index(n, backbone.blocks) for n in places)
        if not blocks:
            some = list(backbone.own)
            raise UserError(
                f'no parameter of backbone "{backbone.name}" is meant by "{self.which}": use all, blocks, or patterns of names '
                f"such as {some[0]} and {some[-1]}."
            )
        # what several blocks share is in none of them: no pass starts above it, and nobody lacks it
        return [
            Site(module, "weights", 0, 0, block=at.pop() if len(at) == 1 else None, tower=_tower(module, backbone))
            for module, at in blocks.items()
        ]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        found = {}
        for role, value in backbone.module(site.name).named_parameters(recurse=False):
            name = site.parameter(role)
            if name in backbone.own and self._means(name, backbone):
                found[role] = Init(tuple(value.shape), "value", value=backbone.originals.get(name, value))
        return found

    def products(self, backbone: Backbone, site: Site) -> Mapping[str, int]:
        """Rows of a table are looked up."""
        return {} if isinstance(backbone.module(site.name), nn.Embedding) else super().products(backbone, site)

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        raise AssertionError("parameters stand in their module, which is all that is done with them")

    def _means(self, name: str, backbone: Backbone) -> bool:
        """Whether a parameter is among them."""
        for word in (w.strip() for w in self.which.split(",")):
            inside = word == "blocks" and block_index(name, backbone.blocks) is not None
            if word == "all" or inside or fnmatchcase(name, word):
                return True
        return False


def _tower(module: str, backbone: Backbone) -> str:
    return "text" if backbone.names is not None and module.startswith(TEXT_TOWER) else ""
