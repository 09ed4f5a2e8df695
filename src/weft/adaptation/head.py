"""The task head of the Hugging Face model, one per client: its own modules, and base modules that the checkpoint lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.errors import UserError
from weft.tensors.init import Init, drawn_like
from weft.typed import Count, NonNegative, Whole

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Head(Additive):
    """Replaces the model's own head, in float32. Starts at the checkpoint's values where it holds a head (a model that was
    fine-tuned before); elsewhere weights ~ N(0, std²), biases 0, norms at identity.
    """

    std: NonNegative = 0.02
    mode: ClassVar[Mode] = "replaces"
    always = True

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.heads

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        norm = site.role == "head.norm"
        found = {"weight": Init((site.d_out,), "ones") if norm else Init((site.d_out, site.d_in), "normal", self.std)}
        if site.bias:
            found["bias"] = Init((site.d_out,))
        for role, init in found.items():
            value = backbone.originals.get(f"{site.name}.{role}")
            if value is not None:
                found[role] = Init(init.shape, "value", value=value)
        return found

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        x = x.to(w["weight"].dtype)
        bias = w["bias"].unsqueeze(1) if "bias" in w else 0
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, eps=module.eps) * w["weight"].unsqueeze(1) + bias
        return torch.bmm(x, w["weight"].mT) + bias


@dataclass(frozen=True)
class TaskHead(Head):
    """The rows of a head that make the logits of some classes alone, those of one task among several.

    Other logits are 0, and it can be switched off.

    Attributes:
        first, end: the classes, by their positions in the whole head.
    """

    first: Whole = 0
    end: Count = 1
    always = False

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: the head is more than one layer.
        """
        if [site.role for site in backbone.heads] != ["head"]:
            raise UserError(
                f'the head of backbone "{backbone.name}" has {len(backbone.heads)} layers, which can\'t be taken apart by tasks: '
                "choose an encoder whose head for tokens is one linear layer, such as minilm, BERT or RoBERTa."
            )
        return backbone.heads

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        found = super().tensors(backbone, site)
        n = self.end - self.first
        return {
            role: replace(init, shape=(n, *init.shape[1:]), value=init.value[self.first : self.end])
            if init.value is not None
            else replace(init, shape=(n, *init.shape[1:]))
            for role, init in found.items()
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        own = super().apply(module, w, x, out)
        whole = int(module.out_features)  # type: ignore[arg-type]
        return F.pad(own, (self.first, whole - self.end))


@dataclass(frozen=True)
class ChosenHead(Head):
    """One of several heads of a client: it works in the passes that name it, in the place of any other.

    Attributes:
        like: the part as which start values are drawn, so that several heads begin alike; "" = its own name.
    """

    like: str = ""
    mode: ClassVar[Mode] = "reads"
    always = False

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return drawn_like(self.like, super().tensors(backbone, site))
