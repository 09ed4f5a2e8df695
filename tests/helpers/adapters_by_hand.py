"""Models with adapters in their sublayers and with prefixes, by hooks on transformers' own modules and by its own cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import DynamicCache

import tiny
from by_hand import Values, merged

Function = Callable[[Tensor], Tensor]


def gelu_new(h: Tensor) -> Tensor:
    """D. Hendrycks & K. Gimpel, arXiv 1606.08415: the approximation by tanh."""
    return 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))


def of_part(values: Values, part: str) -> dict[str, dict[str, Tensor]]:
    """Site -> role -> value."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        where, site, role = name.split("/")
        if where == part:
            found.setdefault(site, {})[role] = value
    return found


def with_adapters(sigma: Function = F.relu) -> Callable[[tiny.Federation, Values, np.ndarray], Tensor]:
    """Logits where the output f of each layer that has an adapter becomes f + U σ(D f + b) + c."""

    def logits(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
        model, handles = run.bench.backbone.model, []
        for site, w in of_part(values, "bottleneck").items():

            def after(_m: Any, _a: Any, out: Tensor, w: dict[str, Tensor] = w) -> Tensor:
                return out + sigma(out @ w["down"].T + w["down_bias"]) @ w["up"].T + w["up_bias"]

            handles.append(model.get_submodule(site).register_forward_hook(after))
        try:
            return _logits(run, values, rows)
        finally:
            for handle in handles:
                handle.remove()

    return logits


def with_prefix(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
    """Logits where each attention has p keys and values of an MLP in front, as transformers' cache of earlier tokens."""
    b, parts = run.bench.backbone, of_part(values, "prefix")
    mlp = parts.pop("values")
    h = torch.tanh(mlp["embedding"] @ mlp["weight"].T + mlp["bias"])
    inputs, cache = run.bench.table.collate(rows), DynamicCache()
    mask, heads = inputs["attention_mask"], b.model.config.num_attention_heads
    for index, w in enumerate(parts.values()):
        pair = (h @ w[role].T + w[f"{role}_bias"] for role in ("key", "value"))
        key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1).expand(len(mask), -1, -1, -1) for x in pair)
        cache.update(key, value, index)
    more = {
        "attention_mask": torch.cat([torch.ones(len(mask), len(h), dtype=mask.dtype), mask], 1),
        "position_ids": torch.arange(mask.shape[1]).expand_as(mask),
        "past_key_values": cache,
        "use_cache": True,
    }
    return _logits(run, values, rows, more)


def _logits(run: tiny.Federation, values: Values, rows: np.ndarray, more: dict[str, Any] | None = None) -> Tensor:
    """With the head of ``values`` in its place."""
    head = {n: v for n, v in values.items() if n.startswith("head/")}
    inputs = run.bench.table.collate(rows) | (more or {})
    out: Tensor = functional_call(run.bench.backbone.model, merged(run, head, 1.0), kwargs=inputs).logits
    return out
