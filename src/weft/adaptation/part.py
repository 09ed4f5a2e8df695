"""What a trainable part is: where it sits, which tensors it has, and its arithmetic with a client axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Site


class Part(Protocol):
    """One kind of trainable thing at named sites of the backbone.

    A part describes itself without the client axis; the pack stacks the tensors of its K clients to ``[K, …]`` and zero-pads
    those that differ in size (ranks), so that ``apply`` must give the same result for a zero-padded tensor.
    """

    def sites(self, backbone: Backbone) -> list[Site]:
        """Where it sits."""
        ...

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        """Role -> shape and start value of each tensor at ``site``."""
        ...

    def constants(self, site: Site) -> Mapping[str, float]:
        """Numbers that may differ between clients (a LoRA's α/r); reach ``apply`` as tensors [k] under the same name."""
        ...

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        """The part's contribution at one site.

        Args:
            module: the frozen module of the backbone.
            w: role -> [k, …] tensors and constant -> [k] tensors of the clients in the rows.
            x, out: the module's input and frozen output, [k, n, d]: n = rows × positions of one client.

        Returns:
            A term to be added to ``out``, [k, n, d_out] (or one that replaces it, see ``replaces``).
        """
        ...

    replaces: bool
    always: bool  # stays on whatever ``use`` says: heads and frozen deltas


class Additive:
    """Defaults of parts that add a term to the frozen output."""

    replaces = False
    always = False

    def constants(self, site: Site) -> Mapping[str, float]:
        return {}
