"""Adapters of a vision-language connector: layers of its shape, which begin as copies of it and stand in its place (Pilot)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.tensors.init import Init
from weft.typed import Positive

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

_COPIES: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]] = weakref.WeakKeyDictionary()
"""Of frozen connectors, which all clients and rounds ask for."""


@dataclass(frozen=True)
class ConnectorAdapter(Additive):
    """ψ(x) = W2 gelu(W1 x + b1) + b2 in the place of the connector, W1 [C, d_v] and W2 [C, C], as the frozen connector has them.

    Several of them are added up. Of a connector with another activation, without biases, or with another number of layers (of
    PaliGemma one), they have that.

    B. Xiong et al., "Pilot: Building the Federated Multimodal Instruction Tuning Framework", AAAI 2025, arXiv 2501.13985.

    Attributes:
        scale: of the copy, with which its last layer begins: 1 = ψ begins as the connector itself.
    """

    scale: Positive = 1.0
    mode: ClassVar[Mode] = "replaces"

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: the backbone has no connector.
        """
        return [backbone.check_connector()]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        last = layers(backbone.module(site.name))[-1]

        def start(role: str, value: Tensor) -> Tensor:
            return self.scale * value if self.scale != 1 and role.startswith(f"{last}.") else value

        own = copied(backbone, site).items()
        return {role: Init(tuple(value.shape), "value", value=start(role, value)) for role, value in own}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        return mlp(module, w, x)


def layers(module: nn.Module) -> list[str]:
    """Names of the linear layers of a connector, in their order."""
    return [name for name, m in module.named_children() if isinstance(m, nn.Linear)]


def copied(backbone: Backbone, site: Site) -> dict[str, Tensor]:
    """Role -> the connector's own parameter, in single precision on the CPU; each is made once."""
    module = backbone.module(site.name)
    if module not in _COPIES:
        found: dict[str, Tensor] = {}
        for layer in layers(module):
            linear: Any = getattr(module, layer)
            place = replace(site, name=f"{site.name}.{layer}", d_in=linear.in_features, d_out=linear.out_features)
            found[f"{layer}.weight"] = backbone.weight(place).float()
            if linear.bias is not None:
                found[f"{layer}.bias"] = linear.bias.detach().to("cpu", torch.float32)
        _COPIES[module] = found
    return _COPIES[module]


def mlp(module: Any, w: Mapping[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    """ψ [k, n, C] of x [k, n, d_v], in the dtype of x.

    Args:
        module: the frozen connector, of which the activations are taken. prefix: of the roles in ``w``.
    """
    linear = layers(module)
    for name, own in module.named_children():
        if name not in linear:
            x = own(x)
            continue
        x = x @ w[f"{prefix}{name}.weight"].to(x.dtype).mT
        bias = w.get(f"{prefix}{name}.bias")
        x = x if bias is None else x + bias.unsqueeze(1).to(x.dtype)
    return x
