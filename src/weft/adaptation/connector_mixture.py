"""Connector adapters of several tasks, of which every visual token takes its own mixture (Pilot)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.connector import ConnectorAdapter, mlp
from weft.tensors.init import Init
from weft.typed import Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

ROUTER = "router"


@dataclass(frozen=True)
class ConnectorMixture(ConnectorAdapter):
    """Σ_i P_i h_i in the place of the connector, with h_1 = ψ_1(x) and h_i = ψ_i(x) + χ_i(x) for i = 2 … E.

    All ψ and χ are MLPs of the connector's shape that begin as copies of it.

    P = softmax(G x) for every token x, with G [E, d_v] ~ U(±1/√d_v). All but the ``top`` largest shares are 0, and those add up
    to 1. Roles are ``router``, and ``task1.linear_1.weight`` … of ψ_1, ``cross2.linear_1.weight`` … of χ_2.

    Attributes:
        experts: E. top: how many of them each token takes; None = all.
    """

    experts: Count = 1
    top: Count | None = None

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        one = super().tensors(backbone, site)
        who = [f"task{i}" for i in range(1, self.experts + 1)] + [f"cross{i}" for i in range(2, self.experts + 1)]
        found = {f"{which}.{role}": init for which in who for role, init in one.items()}
        return found | {ROUTER: Init((self.experts, site.d_in), "uniform", 1 / math.sqrt(site.d_in))}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        router = w[ROUTER]
        p = shares(x.to(router.dtype) @ router.mT, self.top).to(x.dtype)  # never in half precision
        found = p[..., :1] * mlp(module, w, x, "task1.")
        for i in range(2, self.experts + 1):
            h = mlp(module, w, x, f"task{i}.") + mlp(module, w, x, f"cross{i}.")
            found = found + p[..., i - 1 : i] * h
        return found


def shares(logits: Tensor, top: int | None = None) -> Tensor:
    """P [..., E]: the softmax of logits, of which the ``top`` largest are kept and add up to 1."""
    p = torch.softmax(logits, -1)
    if top is None or top >= p.shape[-1]:
        return p
    best = p.topk(top, -1)
    return torch.zeros_like(p).scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))
