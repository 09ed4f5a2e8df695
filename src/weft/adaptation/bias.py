"""BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): the backbone's own bias vectors, with a client axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Called

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

BiasScope = Annotated[Literal["all", "blocks", "linear", "norm"], Called("bias scope")]


@dataclass(frozen=True)
class Bias(Additive):
    """Trainable bias vectors, started at their pretrained values.

    Attributes:
        scope: ``all`` biases of the encoder (those of an embedding norm, the convolution over patches or a pretrained pooler
            too), ``blocks`` (inside the stack), ``linear`` (of its linear layers) or ``norm``.
        add_missing: give linear layers without a bias a zero one (LLaMA, T5); otherwise a backbone without any is refused.
    """

    scope: BiasScope = "all"
    add_missing: bool = False

    def sites(self, backbone: Backbone) -> list[Site]:
        linear = [s for s in backbone.linears if s.bias or self.add_missing]
        norm = [s for s in backbone.norms if s.bias]
        found = {
            "all": linear + norm + [s for s in (*backbone.outer, *backbone.patches, *backbone.convolutions) if s.bias],
            "blocks": linear + [s for s in (*norm, *backbone.convolutions) if s.bias and s.block is not None],
            "linear": linear,
            "norm": norm,
        }[self.scope]
        if not found:
            backbone.check_blocks()
            raise UserError(
                f'backbone "{backbone.name}" has no bias vectors in scope "{self.scope}"; '
                "add zero ones with --set method.add_missing=true."
            )
        return found

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        if site.bias:
            return {"bias": Init((site.d_out,), "value", value=backbone.originals[f"{site.name}.bias"])}
        return {"bias": Init((site.d_out,))}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        # the frozen bias is already in ``out``: add what it has changed by since the start
        return (w["bias"] - w["bias.start"]).unsqueeze(1).to(out.dtype)
