"""Every part does what its formula says, against a model changed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bias import Bias
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta
from weft.backbones.inventory import inventory
from weft.errors import UserError
from weft.tensors.lowrank import LowRank


def adapter(values: Mapping[str, Any], site: str, h: Tensor, part: str = "x") -> Tensor:
    w = {role: values[f"{part}/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}
    return F.relu(h @ w["down"].T + w["down_bias"]) @ w["up"].T + w["up_bias"]


class PostNorm(nn.Module):
    """LN(s + A(LN(s))), the serial adapter of a post-norm block."""

    def __init__(self, norm: nn.Module, values: Mapping[str, Any], site: str):
        super().__init__()
        self.norm, self.values, self.site = norm, values, site

    def forward(self, s: Tensor) -> Tensor:
        return self.norm(s + adapter(self.values, self.site, self.norm(s)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "deberta-v2"])
def test_a_bottleneck_in_a_post_norm_block_is_the_norm_of_sum_and_adapter(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"x": Bottleneck(4), "head": Head()}
    values = values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    for site in b.bottlenecks:
        parent, leaf = site.name.rsplit(".", 1)
        setattr(model.get_submodule(parent), leaf, PostNorm(model.get_submodule(site.name), values, site.name))
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "modernbert", "opt", "phi"])
def test_a_bottleneck_after_any_other_block_is_its_output_plus_adapter(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"x": Bottleneck(4), "head": Head()}
    values = values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    for site in b.bottlenecks:

        def after(_m: nn.Module, _a: object, out: Any, name: str = site.name) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            h = h + adapter(values, name, h)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        model.get_submodule(site.name).register_forward_hook(after)
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "vit"])
def test_biases_at_their_start_change_no_bit(kind: str, precision: str) -> None:
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    head = values_for(bench, {"head": Head()}, seed=1)
    start = {
        f"bias/{s.name}/bias": Bias().tensors(bench.backbone, s)["bias"].draw(0).to(bench.dtype)
        for s in Bias().sites(bench.backbone)
    }
    batch = batch_of(bench, INDEX[:1])
    plain = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    with_bias = pack_of(bench, [{"bias": Bias(), "head": Head()}], [start | head])(batch).logits
    assert torch.equal(plain, with_bias)


@pytest.mark.parametrize("scope", ["all", "blocks", "linear", "norm"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "albert", "opt", "vit"])
def test_a_bias_part_equals_a_model_with_those_biases(kind: str, scope: str) -> None:
    if kind == "qwen2" and scope == "norm":
        with pytest.raises(UserError, match=r'no bias vectors in scope "norm"'):
            Bias(scope).sites(tiny.backbone(kind))
        return
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"bias": Bias(scope), "head": Head()}
    values = values_for(bench, parts, seed=4)
    model = own_model(b)
    set_head(model, b, values)
    with torch.no_grad():
        for s in Bias(scope).sites(b):
            model.get_submodule(s.name).bias.copy_(values[f"bias/{s.name}/bias"])
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


def test_bias_scopes_cover_what_they_name() -> None:
    b = tiny.backbone("bert")
    base = {n.removesuffix(".bias") for n, _ in b.model.named_parameters() if n.endswith(".bias")}
    base -= {h.name for h in b.heads}
    inside = {n for n in base if n.startswith("bert.encoder.")}
    norms = {n for n in base if n.endswith("LayerNorm")}
    found = {scope: {s.name for s in Bias(scope).sites(b)} for scope in ("all", "blocks", "linear", "norm")}
    assert found == {
        "all": base,
        "blocks": inside,
        "linear": inside - norms,
        "norm": norms,
    }


def test_biases_of_pictures_are_those_of_the_convolution_over_patches_too() -> None:
    b = tiny.backbone("vit")
    base = {n.removesuffix(".bias") for n, _ in b.model.named_parameters() if n.endswith(".bias")} - {h.name for h in b.heads}
    (patches,) = (n for n in base if isinstance(b.module(n), nn.Conv2d))
    assert {s.name for s in Bias().sites(b)} == base
    for scope in ("blocks", "linear", "norm"):
        assert patches not in {s.name for s in Bias(scope).sites(b)}
    assert inventory(b)["biases"] == {"vectors": len(base), "elements": sum(b.module(n).bias.numel() for n in base)}  # type: ignore[union-attr,misc]


def test_each_client_of_a_pack_has_its_own_bias_of_the_convolution() -> None:
    bench = tiny.bench("vit")
    (patches,) = bench.backbone.patches
    for slopes in assert_as_alone(bench, [{"bias": Bias(), "head": Head()}] * 3).values():
        assert slopes[f"bias/{patches.name}/bias"].any()


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_a_backbone_without_biases_says_so_and_takes_zero_ones_on_request(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    with pytest.raises(UserError, match=r"add_missing=true"):
        Bias().sites(b)
    part = Bias("linear", add_missing=True)
    parts = {"bias": part, "head": Head()}
    values = values_for(bench, parts, seed=4)
    model = own_model(b)
    set_head(model, b, values)
    for s in part.sites(b):
        model.get_submodule(s.name).bias = nn.Parameter(values[f"bias/{s.name}/bias"])
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("common", [True, False])
def test_a_delta_equals_dense_weights_with_it_added(kind: str, common: bool) -> None:
    """One value for the whole pack takes a path without copies; both paths must give the same."""
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = [{"base": Delta("all"), "head": Head()} for _ in range(3)]
    values = [values_for(bench, p, seed=i, delta_rank=1 + i) for i, p in enumerate(parts)]
    if common:
        values = [{n: values[0][n] if n.startswith("base/") else w for n, w in v.items()} for v in values]
    pack = pack_of(bench, parts, values)
    out = pack(batch_of(bench, INDEX)).logits
    strides = {pack.tensors[f"base/{s.name}/delta.A"].stride(0) for s in b.sites("all")}
    assert (strides == {0}) == common
    for i in range(3):
        model = own_model(b)
        set_head(model, b, values[i])
        with torch.no_grad():
            for s in b.sites("all"):
                dense = values[i][f"base/{s.name}/delta"].dense()
                model.get_submodule(s.name).weight += dense.T if kind == "gpt2" else dense
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[i][valid], logits_of(model, bench, INDEX[i][valid]), **CLOSE)


def test_a_delta_of_rank_zero_changes_nothing() -> None:
    bench = tiny.bench("bert")
    head = values_for(bench, {"head": Head()}, seed=1)
    parts = {"base": Delta("q"), "head": Head()}
    zero = {f"base/{s.name}/delta": LowRank.zeros(32, 32, dtype=torch.float64) for s in bench.backbone.sites("q")}
    batch = batch_of(bench, INDEX[:1])
    plain = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    assert torch.equal(pack_of(bench, [parts], [zero | head])(batch).logits, plain)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert", "deberta-v2", "gpt2"])
def test_every_client_has_a_whole_head_of_its_own(kind: str) -> None:
    bench = tiny.bench(kind)
    parts = [{"head": Head()} for _ in range(3)]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    out = pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits
    for i in range(3):
        model = own_model(bench.backbone)
        set_head(model, bench.backbone, values[i])
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[i][valid], logits_of(model, bench, INDEX[i][valid]), **CLOSE)


def test_a_freshly_drawn_pooler_is_trained_as_part_of_the_head() -> None:
    bench = tiny.bench(tiny.backbone("bert", checkpoint="mlm"))
    parts = {"head": Head()}
    values = values_for(bench, parts, seed=1)
    assert {n.split("/")[1] for n in values} == {"bert.pooler.dense", "classifier"}
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)
