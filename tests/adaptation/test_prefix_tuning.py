"""Prefixes are what transformers makes of the same keys and values in its own cache, each client's for its own rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import tiny
from weaving import CLOSE, INDEX, batch_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.prefix import Prefix
from weft.backbones.backbone import Backbone
from weft.federation.bench import Bench

PARTS: dict[str, Part] = {"prefix": Prefix(3), "head": Head()}
REFUSED = ("deberta-v2", "bloom")  # attention in code of their own
TAKING = [k for k in tiny.SHAPES if k not in REFUSED]


def pairs(values: Mapping[str, Any], site: str) -> tuple[Tensor, Tensor]:
    """Keys [p, d_in] and values [p, d_out] of one block, from its own tensors or from the MLP."""
    w = {n.split("/")[2]: v for n, v in values.items() if n.startswith(f"prefix/{site}/")}
    mlp = {n.split("/")[2]: v for n, v in values.items() if n.startswith("prefix/values/")}
    if not mlp:
        return w["key"], w["value"]
    h = torch.tanh(mlp["embedding"] @ mlp["weight"].T + mlp["bias"])
    return h @ w["key"].T + w["key_bias"], h @ w["value"].T + w["value_bias"]


def cached(b: Backbone, values: Mapping[str, Any], rows: int, heads: int) -> DynamicCache:
    """The prefix of every block as the keys and values of earlier tokens."""
    cache = DynamicCache()
    for index, site in enumerate(b.attentions):
        key, value = (
            x.unflatten(-1, (heads, -1)).transpose(0, 1).unsqueeze(0).expand(rows, -1, -1, -1) for x in pairs(values, site.name)
        )
        cache.update(key.contiguous(), value.contiguous(), index)
    return cache


def by_transformers(bench: Bench, values: Mapping[str, Any], rows: np.ndarray, tokens: int) -> Tensor:
    """Logits of the frozen model with the head of ``values``, the mask longer by the prefix, and the row's own positions."""
    b = bench.backbone
    model = own_model(b)
    set_head(model, b, values)
    inputs = bench.table.collate(rows)
    mask = inputs["attention_mask"]
    positions = torch.arange(mask.shape[1]).expand_as(mask)
    if b.kind == "roberta":  # which counts from behind its padding id
        positions = torch.where(mask > 0, mask.cumsum(1) + model.config.pad_token_id, model.config.pad_token_id)
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    logits: Tensor = model(
        **inputs | {"attention_mask": torch.cat([torch.ones(len(mask), tokens, dtype=mask.dtype), mask], 1)},
        position_ids=positions,
        past_key_values=cached(b, values, len(mask), heads),
        use_cache=True,
    ).logits
    return logits


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "llama", "mistral", "qwen2", "gpt2"])
def test_logits_are_those_of_transformers_with_the_prefix_as_past_keys_and_values(kind: str, hidden: int | None) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"prefix": Prefix(3, hidden), "head": Head()}
    values = values_for(bench, parts, seed=1)
    found = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(found, by_transformers(bench, values, INDEX[0], 3), **CLOSE)
    without = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1]), use={}).logits[0]
    assert (found - without).abs().max() > 1e-2
