"""Prefixes are what transformers makes of the same keys and values in its own cache, each client's for its own rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix, prefixed
from weft.backbones import attending
from weft.backbones.backbone import Backbone
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench

CODE_OF_THEIR_OWN = ("deberta-v2", "bloom", "resnet", "vilt")
TAKING = [k for k in tiny.SHAPES if k not in CODE_OF_THEIR_OWN]


def parts_of(tokens: int = 3, hidden: int | None = None) -> dict[str, Part]:
    return {"prefix": Prefix(tokens, hidden), "head": Head()}


def bench_of(kind: str, **more: Any) -> Bench:
    return tiny.bench(tiny.backbone(kind, task="auto" if kind == "vilt" else "classification"), **more)


# against transformers ---------------------------------------------------------------------------------------------------


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


def by_transformers(bench: Bench, values: Mapping[str, Any], rows: np.ndarray, tokens: int, model: Any = None) -> Tensor:
    """Logits with the head of ``values``, a mask that is longer by the prefix, and the positions that a row has by itself."""
    b = bench.backbone
    model = own_model(b) if model is None else model
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
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "llama", "mistral", "phi", "gpt_neox", "gpt2"])
def test_logits_are_those_of_transformers_with_the_prefix_as_past_keys_and_values(kind: str, hidden: int | None) -> None:
    bench = bench_of(kind)
    parts = parts_of(3, hidden)
    values = values_for(bench, parts, seed=1)
    pack = pack_of(bench, [parts], [values])
    rows = np.arange(6)
    assert len(set(bench.table.lengths[rows])) > 1, "no row is padded"
    found = pack(batch_of(bench, rows[None])).logits[0]
    torch.testing.assert_close(found, by_transformers(bench, values, rows, 3), **CLOSE)
    assert (found - pack(batch_of(bench, rows[None]), use={}).logits[0]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_both_kernels_do_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(kind)
    parts = [parts_of(3), parts_of(2), parts_of(3)]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    found = []
    for kernel in ("sdpa", "eager"):
        monkeypatch.setattr(bench.backbone.model.config, "_attn_implementation", kernel)
        found.append(pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)  # the eager one takes its softmax in float32


def test_rows_of_a_client_without_a_block_skip_its_prefix_too() -> None:
    bench = bench_of("bert")
    b, parts = bench.backbone, parts_of()
    values = [values_for(bench, parts, seed=i) for i in range(2)]
    pack = leaves(pack_of(bench, [parts] * 2, values), "*")
    pack.hold(torch.tensor([[True, False, True], [True, True, True]]))
    found = pack(batch_of(bench, INDEX[:2])).logits
    model = own_model(b)
    model.bert.encoder.layer = nn.ModuleList([model.bert.encoder.layer[i] for i in (0, 2)])
    torch.testing.assert_close(found[0], by_transformers(bench, values[0], INDEX[0], 3, model), **CLOSE)
    torch.testing.assert_close(found[1], by_transformers(bench, values[1], INDEX[1], 3), **CLOSE)
    slopes = grads(pack, found.square().sum((1, 2)), "prefix")
    assert [bool(slopes[f"prefix/{b.attentions[i].name}/key"][0].any()) for i in range(3)] == [True, False, True]


# against attention by hand ----------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """Attention with a prefix, over linear layers found by their roles."""

    def __init__(self, b: Backbone, model: Any, index: int, heads: int, prefix: tuple[Tensor, Tensor]):
        super().__init__()
        self.roles = {s.role: s.name for s in b.linears if s.block == index}
        self.model, self.heads, self.prefix = [model], heads, prefix  # a list: else each would be a part of the other

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

        def layer(role: str, x: Tensor) -> Tensor:
            found: Tensor = self.model[0].get_submodule(self.roles[role])(x)
            return found

        q, k, v = (heads(layer(role, hidden)) for role in ("q", "k", "v"))
        before = (q @ heads(self.prefix[0]).mT) / math.sqrt(q.shape[-1])
        within = (q @ k.mT) / math.sqrt(q.shape[-1])
        if attention_mask is not None:
            within = within.masked_fill(~attention_mask, -torch.inf)
        share = torch.softmax(torch.cat([before, within], -1), -1).split([before.shape[-1], within.shape[-1]], -1)
        mixed = share[0] @ heads(self.prefix[1]) + share[1] @ v
        return layer("o", mixed.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("kind", ["distilbert", "vit"])
def test_a_model_that_would_pass_over_past_keys_and_values_takes_a_prefix_too(kind: str) -> None:
    bench = bench_of(kind)
    b, parts = bench.backbone, parts_of(4, 5)
    values = values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    for index, site in enumerate(b.attentions):
        parent, leaf = site.name.rsplit(".", 1)
        setattr(model.get_submodule(parent), leaf, ByHand(b, own_model(b), index, 4, pairs(values, site.name)))
    found = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(found, logits_of(model, bench, INDEX[0]), **CLOSE)


class Attention(nn.Module):
    """As those of transformers: a function that the configuration names."""

    def __init__(self, kernel: str, groups: int, causal: bool):
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=kernel)
        self.num_key_value_groups, self.is_causal = groups, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        found: Tensor = attend(self, q, k, v, mask, scaling=0.5, **more)[0]
        return found


def window(q: int, k: int) -> Tensor:
    """Of 2 tokens, as a sliding window has it: [1, 1, q, k]."""
    apart = torch.arange(q)[:, None] - torch.arange(k)
    return ((apart >= 0) & (apart < 2))[None, None]


@pytest.mark.parametrize(
    ("queries", "causal", "mask"),
    [
        (5, False, None),
        (5, True, None),
        (1, True, None),  # a token behind those in the cache
        (5, True, window(5, 5)),
        (5, True, torch.zeros(4, 1, 5, 5).double().masked_fill(~window(5, 5), -1e300)),
        (5, False, torch.tensor([5, 3, 4, 1])[:, None, None, None] > torch.arange(5)),
    ],
    ids=["all", "causal", "cached", "window", "added window", "padding"],
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("own", [(3, 3), (3, 2)], ids=["alike", "unlike"])
def test_a_prefix_is_seen_by_every_token_whatever_the_mask(
    queries: int, causal: bool, mask: Tensor | None, groups: int, own: tuple[int, int]
) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(4, h, n, 6, generator=g, dtype=torch.float64) for h, n in ((4, queries), (4 // groups, 5), (4 // groups, 5))
    )
    pair = torch.randn(2, 3, 2 * (4 // groups) * 6, generator=g, dtype=torch.float64)
    tokens = None if own == (3, 3) else torch.tensor(own)
    module = Attention("sdpa", groups, causal)
    bias = torch.randn(1, 4, queries, 5, generator=g, dtype=torch.float64)
    given = {"position_bias": bias} if causal else {}
    found = prefixed(module, module.forward, lambda key: [(pair, tokens)])(q, k, v, mask, **given)
    assert isinstance(module.config, SimpleNamespace)
    for row in range(4):
        n = own[row // 2]
        front = pair[row // 2, :n].unflatten(-1, (2, 4 // groups, 6))
        for head in range(4):
            key, value = (torch.cat([front[:, i, head // groups], x[row, head // groups]]) for i, x in enumerate((k, v)))
            scores = q[row, head] @ key.T * 0.5
            if causal:
                scores[:, n:] += bias[0, head]
            seen = torch.ones(queries, 5, dtype=torch.bool)
            if mask is not None:
                seen = mask[row % len(mask), 0].expand(queries, 5)
                seen = seen if seen.dtype == torch.bool else seen == 0
            elif causal and queries > 1:
                seen = seen.tril()
            scores[:, n:] = scores[:, n:].masked_fill(~seen, -torch.inf)
            torch.testing.assert_close(found[row, :, head], torch.softmax(scores, -1) @ value, **CLOSE)


@pytest.mark.parametrize("asked", [True, False])
def test_who_is_asked_to_be_causal_is_so_whatever_the_module_says(asked: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 6, generator=g, dtype=torch.float64) for _ in range(3))
    pair = torch.randn(2, 3, 48, generator=g, dtype=torch.float64)

    def found(module: Attention, **more: Any) -> Tensor:
        attended: Tensor = prefixed(module, module.forward, lambda key: [(pair, None)])(q, k, v, None, **more)
        return attended

    assert torch.equal(found(Attention("sdpa", 1, not asked), is_causal=asked), found(Attention("sdpa", 1, asked)))


def eager_attention_forward(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """As each file of transformers has one: without a mask everything is seen."""
    scores = q @ k.mT * scaling
    return (torch.softmax(scores if mask is None else scores + mask, -1) @ v).transpose(1, 2), None


def test_an_eager_kernel_without_a_mask_goes_on_seeing_everything() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 6, generator=g, dtype=torch.float64) for _ in range(3))
    pair = torch.randn(2, 3, 48, generator=g, dtype=torch.float64)
    eager, all_seen = (
        prefixed(m, m.forward, lambda key: [(pair, None)])(q, k, v, None)
        for m in (Attention("eager", 1, causal=True), Attention("sdpa", 1, causal=False))
    )
    torch.testing.assert_close(eager, all_seen, **CLOSE)


class Decorated(Attention):
    """As those of transformers whose forward another file wraps."""

    forward = torch.no_grad()(Attention.forward)


def test_the_eager_function_of_a_file_is_found_behind_what_wraps_a_forward() -> None:
    assert attending.own_function(Attention("eager", 1, causal=False)) is eager_attention_forward
    assert attending.own_function(Decorated("eager", 1, causal=False)) is eager_attention_forward


def test_where_attention_is_computed_in_a_model_that_does_not_run_is_not_known() -> None:
    model = OfOtherWidths()
    before = model.block.config
    assert attending.sites(model, ["block"], {"pictures": torch.zeros(1, 5, 12)}) == []
    assert model.block.config is before


def test_a_model_that_compares_with_the_names_of_classes_is_run_with_them() -> None:
    b = tiny.backbone("clip", task="similarity")
    assert [(s.block, s.d_in, s.d_out) for s in b.attentions] == [(i, 32, 32) for i in range(len(b.blocks))]


class OfOtherWidths(nn.Module):
    """One block, of two heads, whose keys have 6 features and whose values have 4."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Attention("sdpa", 1, causal=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 6)).transpose(1, 2)
        found: Tensor = self.block(heads, heads, heads[..., :4], None)
        return found


def test_values_may_be_of_another_width_than_keys() -> None:
    g = torch.Generator().manual_seed(0)
    model, x = OfOtherWidths(), torch.randn(1, 5, 12, generator=g, dtype=torch.float64)
    (site,) = attending.sites(model, ["block"], {"x": x})
    assert (site.d_in, site.d_out) == (12, 8)
    b = tiny.backbone("bert")
    assert {r: i.shape for r, i in Prefix(3).tensors(b, site).items()} == {"key": (3, 12), "value": (3, 8)}
    made = {r: i.shape for r, i in Prefix(3, 7).tensors(b, site).items()}
    assert made == {"key": (12, 7), "key_bias": (12,), "value": (8, 7), "value_bias": (8,)}
    w = {r: torch.randn(1, 3, d, generator=g, dtype=torch.float64) for r, d in (("key", 12), ("value", 8))}
    pair = Prefix(3).apply(model.block, w, x, x)
    model.block.forward = prefixed(model.block, model.block.forward, lambda key: [(pair, None)])  # type: ignore[method-assign]
    found = model(x)[0]
    for head in range(2):
        own = x[0].unflatten(-1, (2, 6))[:, head]
        key, value = (torch.cat([w[r][0].unflatten(-1, (2, -1))[:, head], y]) for r, y in (("key", own), ("value", own[:, :4])))
        torch.testing.assert_close(found[:, head], torch.softmax(own @ key.T * 0.5, -1) @ value, **CLOSE)


# packs --------------------------------------------------------------------------------------------------------------------


def assert_each_client_has_its_own(bench: Bench, parts: list[dict[str, Part]], clients: list[int] | None = None) -> None:
    for slopes in assert_as_alone(bench, parts, clients).values():
        assert all(bool(v.any()) for n, v in slopes.items() if n.startswith("prefix/")), "a prefix does nothing"


@pytest.mark.parametrize("kind", TAKING)
def test_each_client_of_a_pack_has_its_own_prefix(kind: str) -> None:
    assert_each_client_has_its_own(bench_of(kind), [parts_of(3)] * 3)


@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("clients", [None, [2, 0]])
@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_clients_of_a_pack_may_have_prefixes_of_other_lengths(kind: str, clients: list[int] | None, hidden: int | None) -> None:
    assert_each_client_has_its_own(bench_of(kind), [parts_of(n, hidden) for n in (1, 4, 2)], clients)


def test_gradients_of_single_rows_add_up() -> None:
    bench = bench_of("bert")
    parts = [parts_of(3, 4)] * 3
    pack = leaves(pack_of(bench, parts, [values_for(bench, p, seed=i) for i, p in enumerate(parts)]), "*")
    batch = batch_of(bench, INDEX)
    rows = pack.row_gradients(lambda p, b: p.loss(p(b), b), batch, "*")
    whole = grads(pack, pack.loss(pack(batch), batch), "*")
    count = torch.tensor([4, 4, 3], dtype=torch.float64)
    for name, value in whole.items():
        found = rows[name].sum(1) / count.view(-1, *[1] * (value.dim() - 1))
        torch.testing.assert_close(found, value, **CLOSE)


def test_blocks_that_are_computed_once_more_keep_every_bit() -> None:
    found = []
    for recompute in (False, True):
        bench = replace(bench_of("llama"), recompute=recompute)
        parts = [parts_of(3, 4)] * 3
        pack = leaves(pack_of(bench, parts, [values_for(bench, p, seed=i) for i, p in enumerate(parts)]), "*")
        batch = batch_of(bench, INDEX)
        found.append(grads(pack, pack.loss(pack(batch), batch), "*"))
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    loss = pack.loss(pack(batch), batch).sum()
    with torch.no_grad():
        pack.tensors["prefix/values/weight"].add_(1.0)
    with pytest.raises(WeftError, match='"prefix/values/weight" was changed between'):
        loss.backward()


def test_nothing_below_a_prefix_is_taken_from_the_cache_of_frozen_blocks() -> None:
    for parts in (parts_of(), {"lora": LoRA(2, 4.0, "names:2.attention.self.query")} | parts_of()):
        found = []
        for prefix in (False, True):
            bench = bench_of("bert", prefix=prefix)
            pack = pack_of(bench, [parts], [values_for(bench, parts, seed=1)])
            assert pack.cut() == 0
            found.append(pack(batch_of(bench, INDEX[:1])).logits)
        assert torch.equal(*found)


# beside other things --------------------------------------------------------------------------------------------------------


def test_two_prefixes_are_one_of_both() -> None:
    bench = bench_of("llama")
    two: dict[str, Part] = {"a": Prefix(2), "b": Prefix(3), "head": Head()}
    values = values_for(bench, two, seed=1)
    both = {n: v for n, v in values.items() if n.startswith("head/")}
    for name in [n for n in values if n.startswith("a/")]:
        both["prefix" + name[1:]] = torch.cat([values[name], values["b" + name[1:]]])  # type: ignore[list-item]
    found = pack_of(bench, [two], [values])(batch_of(bench, INDEX[:1])).logits
    one = pack_of(bench, [parts_of(5)], [both])(batch_of(bench, INDEX[:1])).logits
    torch.testing.assert_close(found, one, **CLOSE)


def test_off_it_leaves_the_frozen_model_and_nothing_stays_behind() -> None:
    bench = bench_of("bert")
    model, parts = bench.backbone.model, parts_of()
    config = {id(m.config) for m in model.modules() if hasattr(m, "config")}
    values = values_for(bench, parts, seed=1)
    pack = pack_of(bench, [parts], [values])
    pack(batch_of(bench, INDEX[:1]))
    plain = own_model(bench.backbone)
    set_head(plain, bench.backbone, values)
    torch.testing.assert_close(pack(batch_of(bench, INDEX[:1]), {}).logits[0], logits_of(plain, bench, INDEX[0]), **CLOSE)
    assert list(tiny.hooks(model)) == []
    assert {id(m.config) for m in model.modules() if hasattr(m, "config")} == config


@pytest.mark.parametrize("weight", [0.5, torch.ones(1)])
def test_it_is_on_or_off(weight: Any) -> None:
    bench = bench_of("bert")
    pack = pack_of(bench, [parts_of()], [values_for(bench, parts_of(), seed=1)])
    with pytest.raises(WeftError, match='the part "prefix" is on or off'):
        pack(batch_of(bench, INDEX[:1]), {"prefix": weight})


def test_in_lower_precision_it_computes_in_that() -> None:
    bench = tiny.bench(tiny.backbone("bert", precision="bfloat16"))
    parts = parts_of()
    found = pack_of(bench, [parts], [values_for(bench, parts, seed=1)])(batch_of(bench, INDEX[:1])).logits
    wide = bench_of("bert")
    same = pack_of(wide, [parts], [values_for(wide, parts, seed=1)])(batch_of(wide, INDEX[:1])).logits
    torch.testing.assert_close(found.double(), same, rtol=0, atol=0.2)


# what can't be done -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODE_OF_THEIR_OWN)
def test_a_backbone_with_attention_of_its_own_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="computes attention in code of its own, which takes no prefixes: choose another --model"):
        Prefix().sites(tiny.backbone(kind))


@pytest.mark.parametrize("kind", ["longt5", "led"])  # in the encoder alone, and everywhere
def test_so_is_one_that_has_it_in_some_blocks(kind: str) -> None:
    with pytest.raises(UserError, match="takes no prefixes"):
        Prefix().sites(tiny.backbone(kind, task="generation", checkpoint="pair"))


def test_a_kernel_without_a_mask_over_pairs_of_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("bert")
    pack = pack_of(bench, [parts_of()], [values_for(bench, parts_of(), seed=1)])
    monkeypatch.setattr(bench.backbone.model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(UserError, match='the attention kernel "flash_attention_2" takes no prefixes'):
        pack(batch_of(bench, INDEX[:1]))
    assert list(tiny.hooks(bench.backbone.model)) == []


def test_an_error_inside_leaves_every_configuration_in_its_place() -> None:
    model = own_model(tiny.backbone("bert"))
    module = model.bert.encoder.layer[0].attention.self
    before = module.config

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("inside")

    inside: Callable[..., Any] = fail
    with pytest.raises(KeyError, match="inside"), attending.standing_in([module], inside):
        model(torch.ones(1, 3, dtype=torch.long))
    assert module.config is before


# start --------------------------------------------------------------------------------------------------------------------


def test_prefixes_start_normal_and_layers_of_the_mlp_as_linear_layers_do() -> None:
    b = tiny.backbone("bert")
    plain = Prefix(400)
    start = plain.tensors(b, plain.sites(b)[0])["key"].draw(0, "x")
    assert start.shape == (400, 32)
    assert math.isclose(float(start.std()), 1.0, rel_tol=0.03)
    made = Prefix(400, 64)
    shared, first = (made.tensors(b, s) for s in made.sites(b)[:2])
    assert math.isclose(float(shared["embedding"].draw(0, "e").std()), 1.0, rel_tol=0.03)
    for init in (shared["weight"], shared["bias"], *first.values()):
        drawn = init.draw(0, "w")
        linear = nn.Linear(64, 4096)  # PyTorch's own start of a layer with as many inputs
        bound = float(linear.weight.detach().abs().max())
        assert 0.85 * bound < float(drawn.abs().max()) <= 1 / math.sqrt(64)


@pytest.mark.parametrize(("hidden", "role"), [(None, "key"), (None, "value"), (8, "embedding")])
def test_the_spread_of_start_values_is_a_setting(hidden: int | None, role: str) -> None:
    b = tiny.backbone("bert")
    made = Prefix(400, hidden, std=0.1)
    assert math.isclose(float(made.tensors(b, made.sites(b)[0])[role].draw(0, "x").std()), 0.1, rel_tol=0.05)


def test_keys_and_values_are_as_wide_as_those_of_grouped_heads() -> None:
    (site, *_) = Prefix().sites(tiny.backbone("llama"))
    assert {r: i.shape for r, i in Prefix(5).tensors(tiny.backbone("llama"), site).items()} == {
        "key": (5, 16),
        "value": (5, 16),
    }
