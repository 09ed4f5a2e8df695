"""Prefix tuning (X. L. Li & P. Liang, ACL 2021, arXiv 2101.00190): trainable keys and values in front of those of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.adaptation.values import NOWHERE
from weft.backbones import attending
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Count, NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Prefix(Additive):
    """p keys and values at every attention, to which each token of a row attends beside those of the row. They stand outside the
    row: they have no positions and take none from it, no causal mask, window or padding hides them, and attention to the row is
    the frozen model's but for what the softmax gives to them.

    Of each block its own (P-tuning v2: X. Liu et al., ACL 2022, arXiv 2110.07602), or made of p vectors common to all blocks
    by an MLP that is trained with them (§4.3 of Li & Liang): W_2 tanh(W_1 e_i + b_1) + b_2, of which every block has the rows of
    W_2 for its keys and values. Means of such MLPs are not the MLP of mean prefixes.

    Attributes:
        tokens: p.
        hidden: width of the e_i and of the MLP's hidden layer; None = without MLP.
        std: of the normal start values, of keys and values or of the e_i. Layers of the MLP start uniform on ±1/√(their inputs).
    """

    tokens: Count = 16
    hidden: Count | None = None
    std: NonNegative = 1.0
    mode: ClassVar[Mode] = "prefixes"

    def sites(self, backbone: Backbone) -> list[Site]:
        backbone.check_blocks()
        found = backbone.attentions
        if {s.block for s in found} != set(range(len(backbone.blocks))):
            raise UserError(
                f'backbone "{backbone.name}" computes attention in code of its own, which takes no prefixes: choose another '
                "--model, such as minilm, or another kind of part."
            )
        return found if self.hidden is None else [NOWHERE, *found]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        if self.hidden is None:
            widths = {"key": site.d_in, "value": site.d_out}
            return {role: Init((self.tokens, d), "normal", self.std) for role, d in widths.items()}
        h, bound = self.hidden, 1 / math.sqrt(self.hidden)
        if site == NOWHERE:
            return {
                "embedding": Init((self.tokens, h), "normal", self.std),
                "weight": Init((h, h), "uniform", bound),
                "bias": Init((h,), "uniform", bound),
            }
        return {
            "key": Init((site.d_in, h), "uniform", bound),
            "key_bias": Init((site.d_in,), "uniform", bound),
            "value": Init((site.d_out, h), "uniform", bound),
            "value_bias": Init((site.d_out,), "uniform", bound),
        }

    def elsewhere(self, backbone: Backbone, site: Site) -> Mapping[str, str]:
        if self.hidden is None or site == NOWHERE:
            return {}
        return {role: f"{NOWHERE.name}/{role}" for role in ("embedding", "weight", "bias")}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {} if site == NOWHERE else {"tokens": float(self.tokens)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        if self.hidden is None:
            return torch.cat([w["key"], w["value"]], -1)
        h = torch.tanh(_linear(w["embedding"], w["weight"], w["bias"]))
        return torch.cat([_linear(h, w["key"], w["key_bias"]), _linear(h, w["value"], w["value_bias"])], -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.bmm(x, weight.mT) + bias.unsqueeze(1)


Pairs = Callable[[Tensor], list[tuple[Tensor, Tensor | None]]]
"""Keys of the rows [n, H, S, d] -> of each part there, what mode ``prefixes`` says, and how many of its tokens each client has,
[k]; None = all."""

KERNELS = ("eager", "sdpa")
"""Attention functions that take a mask over all pairs of tokens."""


def prefixed(module: nn.Module, forward: Callable[..., Any], pairs: Pairs) -> Callable[..., Any]:
    """The forward pass of an attention module in which ``pairs`` stand in front of keys and values.

    Raises:
        UserError: its attention function can't be told who sees whom.
    """
    kernel = attending.kernel(module)
    if kernel not in KERNELS:
        raise UserError(
            f'the attention kernel "{kernel}" takes no prefixes: load the backbone with attention="sdpa", or choose another kind '
            "of part."
        )

    def run(own: attending.Attend, at: nn.Module, query: Tensor, *given: Any, **more: Any) -> Any:
        key, value, mask, *rest = given
        if mask is None and kernel == "sdpa":
            mask = _causal(at, query, key, more.get("is_causal"))
        for pair, tokens in pairs(key):
            mask = _widened(mask, tokens, pair, key)
            keys, values = pair.to(key.dtype).split([key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]], -1)
            key, value = _in_front(keys, key), _in_front(values, value)
            if more.get("position_bias") is not None:  # of T5, by distance: there is none to what stands outside the row
                more["position_bias"] = F.pad(more["position_bias"], (pair.shape[1], 0))
        return own(at, query, key, value, mask, *rest, **more)

    def call(*args: Any, **kwargs: Any) -> Any:
        with attending.standing_in([module], run):
            return forward(*args, **kwargs)

    return call


def _causal(module: nn.Module, query: Tensor, key: Tensor, causal: bool | None) -> Tensor | None:
    """The mask that the kernel would make by itself, which can't know of what stands in front: [1, 1, T, S]; None = none."""
    if query.shape[2] == 1 or not (getattr(module, "is_causal", True) if causal is None else causal):
        return None
    return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()


def _in_front(some: Tensor, of: Tensor) -> Tensor:
    """[k, p, H·d] in front of [n, H, S, d], whose rows are those of k clients: [n, H, p + S, d]."""
    heads = some.unflatten(-1, (of.shape[1], of.shape[3])).transpose(1, 2)
    return torch.cat([heads.repeat_interleave(len(of) // len(some), 0), of], 2)


def _widened(mask: Tensor | None, tokens: Tensor | None, pair: Tensor, key: Tensor) -> Tensor | None:
    """A mask over p more keys in front, of which a row sees as many as its client has.

    Args:
        mask: [n or 1, H or 1, T, S], bool or added to the scores; None = everything is seen. tokens, pair: see :data:`Pairs`.
        key: of the rows.
    """
    k, p = pair.shape[:2]
    if tokens is None:
        if mask is None:
            return None
        shown = torch.ones(1, p, dtype=torch.bool, device=key.device)
    else:
        shown = (torch.arange(p, device=key.device) < tokens.unsqueeze(1)).repeat_interleave(len(key) // k, 0)
    if mask is None:
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
    front = shown
    if mask.dtype != torch.bool:
        front = torch.zeros_like(shown, dtype=mask.dtype).masked_fill(~shown, torch.finfo(mask.dtype).min)
    rows = torch.broadcast_shapes(mask.shape[:3], (len(front), 1, 1))
    return torch.cat([front[:, None, None].expand(*rows, p), mask.expand(*rows, -1)], -1)
