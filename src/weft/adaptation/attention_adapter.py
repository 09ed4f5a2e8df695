"""The attention-based adapter of FedCLIP, on the embedding of a whole image.

W. Lu, X. Hu, J. Wang, X. Xie, "FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning", IEEE Data
Engineering Bulletin 2023, arXiv 2302.13485.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class AttentionAdapter(Additive):
    """D·A(z) ⊙ z in the place of the embedding z [D] before it is normalised, A(z) = softmax(W2·tanh(W1·z + b1) + b2).

    The paper's A(z) ⊙ z has the same direction, which is all that a CLIP compares. With the factor D a uniform A(z) is the
    identity, so that half precision loses nothing, and a weight between 0 and 1 leads from the frozen model to the adapted one.
    All tensors start uniform on ±1/√D, as a linear layer does.
    """

    def sites(self, backbone: Backbone) -> list[Site]:
        return [backbone.joint_embedding()]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        d = site.d_in
        return {
            role: Init(shape, "uniform", 1 / math.sqrt(d))
            for role, shape in {"W1": (d, d), "b1": (d,), "W2": (d, d), "b2": (d,)}.items()
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        z = out.to(w["W1"].dtype)
        hidden = torch.tanh(torch.baddbmm(w["b1"].unsqueeze(1), z, w["W1"].mT))
        attention = torch.softmax(torch.baddbmm(w["b2"].unsqueeze(1), hidden, w["W2"].mT), -1)
        return (z.shape[-1] * attention - 1) * z
