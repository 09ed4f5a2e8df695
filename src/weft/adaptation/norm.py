"""The backbone's own norms, with a client axis: weights and biases of layer norms, RMS norms and batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.adaptation.attachments import Parameter, put_on
from weft.adaptation.part import Additive
from weft.errors import UserError
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Norm(Additive):
    """Weights and biases of all norms outside the head, started at their pretrained values. What a norm of whatever kind gives is
    affine in them, so that their changes are a term beside the frozen output.

    Attributes:
        embeddings: those of embeddings too, which are told by their names (``layernorm_embedding``).
    """

    embeddings: bool = True

    def sites(self, backbone: Backbone) -> list[Site]:
        """
        Raises:
            UserError: there is none.
        """
        found = [site for site in backbone.norms if self.embeddings or site.block is not None or "emb" not in site.name.lower()]
        if not found:
            raise UserError(f'backbone "{backbone.name}" has no norms with weights: choose another tune.kind, such as bias.')
        return found

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {
            role: Init(tuple(value.shape), "value", value=backbone.originals.get(site.parameter(role), value))
            for role, value in backbone.module(site.name).named_parameters(recurse=False)
        }

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        # the frozen weight and bias are already in ``out``: add what they have changed by since the start
        change = {role: (w[role] - w[f"{role}.start"]).unsqueeze(1).to(out.dtype) for role in ("weight", "bias") if role in w}
        found = change["weight"] * standardised(module, x, w)
        return found + change["bias"] if "bias" in change else found


def standardised(module: nn.Module, x: Tensor, w: Mapping[str, Tensor] | None = None) -> Tensor:
    """[k, n, d], what a norm makes of x before its weight: what it gives at weights of 1 less what it gives at 0, since some
    count their weights from 1 (Gemma).

    Args:
        w: ``norm.mean`` and ``norm.var`` [k, d], what a batch norm has gone by in this pass, if not by those of its checkpoint.
    """
    if isinstance(module, _BatchNorm):  # of rows in whatever shape
        if w is not None and "norm.mean" in w:
            mean, var = (w[name].unsqueeze(1) for name in ("norm.mean", "norm.var"))
            return ((x - mean) * (var + module.eps).rsqrt()).to(x.dtype)
        assert module.running_mean is not None and module.running_var is not None
        return (x - module.running_mean) * (module.running_var + module.eps).rsqrt()
    at = dict(module.named_parameters(recurse=False))

    def given(weight: float) -> Tensor:
        parameters = {n: torch.full_like(p, weight if n == "weight" else 0.0) for n, p in at.items()}
        with put_on(Parameter(module, n, p) for n, p in parameters.items()):
            found: Tensor = module.forward(x)
        return found

    return given(1.0) - given(0.0)
