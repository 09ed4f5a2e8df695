"""DoRA (Liu, Wang, Yin et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv 2402.09353) with a client axis."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.lora import LoRA, low_rank_product
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

_NORMS: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
"""Of frozen layers, which all clients and rounds ask for."""


@dataclass(frozen=True)
class DoRA(LoRA):
    """W' = m (W0 + s B A) / ‖W0 + s B A‖ in the place of W0, with one norm and one magnitude for each output: m [d_out], ‖W0‖
    at the start. The gradient takes the norm for a constant, as the paper's section 4.3 and PEFT do.

    What is added to the frozen output is (m/‖·‖ - 1) W0 x + m/‖·‖ s B A x. Squares of the norms are ‖W0‖² + 2 s ⟨B, W0 Aᵀ⟩ +
    s² ⟨B, B A Aᵀ⟩ by rows, so that no client's whole matrix is ever made.
    """

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        # in single precision, in which start values travel and are drawn: what has not moved is exactly at its start
        start = norms(backbone, site).float()
        return {**super().tensors(backbone, site), "m": Init((site.d_out,), "value", value=start)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        gain = self.gain(module, w)
        read = self.read(w, x)
        if read is x:
            bias = getattr(module, "bias", None)
            frozen = out if bias is None else out - bias
        else:
            frozen = product(module, read)
        rest = low_rank_product(read, w["A"] * w["scale"].view(-1, 1, 1), w["B"])
        return (gain - 1).to(frozen.dtype).unsqueeze(1) * frozen + gain.to(rest.dtype).unsqueeze(1) * rest

    def gain(self, module: nn.Module, w: Mapping[str, Tensor]) -> Tensor:
        """m / ‖W0 + s B A‖, [k, d_out]."""
        start = _NORMS[module].to(w["m"])
        with torch.no_grad():
            a, b, s = w["A"], w["B"], w["scale"].view(-1, 1)
            across = (b * product(module, a).mT.to(b)).sum(-1)
            square = start.square() + 2 * s * across + s.square() * (b * (b @ (a @ a.mT))).sum(-1)
            norm = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
            norm = torch.where(b.any(-1), norm, start)  # exactly, so that a model begins as the frozen one
        return (start + (w["m"] - w["m.start"].to(w["m"]))) / norm


def norms(backbone: Backbone, site: Site) -> Tensor:
    """‖W0‖ by outputs, [d_out]; for each layer computed once."""
    module = backbone.module(site.name)
    if module not in _NORMS:
        _NORMS[module] = torch.linalg.vector_norm(backbone.weight(site), dim=1)
    return _NORMS[module]


def product(module: nn.Module, x: Tensor) -> Tensor:
    """W0 x of a frozen linear layer of whatever kind, quantised ones too: [k, n, d_in] -> [k, n, d_out]."""
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter:  # torchao has tensors of its own in plain layers
        return x @ module.weight.to(x.dtype).mT
    bias = getattr(module, "bias", None)
    own = next(module.parameters()).dtype
    rows = x.to(own if own.is_floating_point else x.dtype).contiguous()  # GPT-2's layers take no other
    found: Tensor = module.forward(rows).to(x.dtype)
    return found if bias is None else found - bias.to(x.dtype)
