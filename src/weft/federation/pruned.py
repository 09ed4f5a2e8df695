"""A method that prunes what is tuned, by one mask for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from weft.adaptation.tune import Tune
from weft.federation.layout import Adaptation
from weft.federation.scope import SHARED
from weft.federation.server import ServerState
from weft.federation.tuned import Tuned
from weft.tensors.masked import Masked, dense

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


class Pruned(Tuned):
    """Federated averaging of what is left of each tensor. A subclass says which entries, and when that changes.

    The server holds a pruned tensor as :class:`weft.tensors.masked.Masked`: clients receive, train and send its entries alone.

    Attributes:
        tune: what is trained and pruned; matrices are, and neither vectors (biases, norms) nor tables of words nor the head.
    """

    in_part: ClassVar[tuple[str, ...]] = ("*",)
    tune: Tune = Tune("weights", weights="blocks")

    @staticmethod
    def prunable(adaptation: Adaptation, backbone: Backbone) -> dict[str, int | None]:
        """Names of the tensors that may be pruned, each with the block that it sits in."""
        found: dict[str, int | None] = {}
        for name, (part, scope) in adaptation.items():
            for site in part.sites(backbone) if name != "head" else ():
                table = site.role == "weights" and isinstance(backbone.module(site.name), nn.Embedding)
                for role, init in part.tensors(backbone, site).items():
                    own = scope[role] if isinstance(scope, Mapping) else scope
                    if len(init.shape) > 1 and SHARED in own and not table:
                        found[f"{name}/{site.called}/{role}"] = site.block
        return found

    @staticmethod
    def write_masks(server: ServerState, masks: Mapping[str, Tensor]) -> None:
        """Let the server hold these entries; those that it did not hold are 0."""
        for name, mask in masks.items():
            server.write(name, Masked.of(dense(server.shared[name]), mask))
