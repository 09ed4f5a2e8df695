"""IA³ is PEFT's, in outputs and gradients, and SSF is a model whose layers are scaled and shifted by hand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.scale import Scale
from weft.backbones.quantised import size
from weft.errors import UserError
from weft.federation.bench import Bench


def peft_of(bench: Bench, kind: str, values: Mapping[str, Any]) -> tuple[Any, dict[str, nn.Parameter]]:
    """PEFT's IA³ with these values, and its vectors by the names of ours."""
    from peft import IA3Config, get_peft_model

    b = bench.backbone
    model = own_model(b)
    set_head(model, b, values)
    sites = {s.name: s for s in Scale().sites(b)}
    inner = [n for n, s in sites.items() if s.role == "ffn.out"]
    adapted = get_peft_model(model, IA3Config(target_modules=list(sites), feedforward_modules=inner)).double()
    vectors = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "ia3_l") and len(module.ia3_l):
            site = name.removeprefix("base_model.model.")
            role = "inner" if site in inner else "scale"
            vector = module.ia3_l["default"]
            with torch.no_grad():
                vector.copy_(values[f"scale/{site}/{role}"].view_as(vector))
            vectors[f"scale/{site}/{role}"] = vector
    return adapted.eval(), vectors


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "gpt2", "llama", "mistral", "vit"])
def test_ia3_is_that_of_peft_in_outputs_and_gradients(kind: str) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"scale": Scale(), "head": Head()}
    values = values_for(bench, parts, seed=3)
    theirs, vectors = peft_of(bench, kind, values)
    assert {n for n in values if n.startswith("scale/")} == vectors.keys()
    batch = batch_of(bench, INDEX[:1])
    pack = leaves(pack_of(bench, [parts], [values]), "scale")
    loss = pack.loss(pack(batch), batch)
    wanted = logits_of(theirs, bench, INDEX[0])
    torch.testing.assert_close(pack(batch).logits[0], wanted, **CLOSE)
    expected = torch.nn.functional.cross_entropy(wanted, batch.labels.flatten())
    slopes = torch.autograd.grad(expected, list(vectors.values()))
    found = grads(pack, loss, "scale")
    assert found.keys() == vectors.keys()
    for name, slope in zip(vectors, slopes, strict=True):
        assert slope.any()
        torch.testing.assert_close(found[name][0], slope.flatten(), **CLOSE)


def test_it_sits_where_the_paper_has_it_and_scales_what_goes_into_the_end_of_a_feed_forward() -> None:
    b = tiny.backbone("llama")
    part = Scale()
    sites = part.sites(b)
    assert [s.role for s in sites[:3]] == ["k", "v", "ffn.out"]
    assert len(sites) == 3 * len(b.blocks)
    assert {r: i.shape for s in sites[:3] for r, i in part.tensors(b, s).items()} == {"scale": (16,), "inner": (64,)}
    assert {s.role for s in Scale("q,o").sites(b)} == {"q", "o"}


def by_hand(model: nn.Module, values: Mapping[str, Any], part: str) -> None:
    """Every module that has them gives γ ⊙ f + β, over its features, which lie before the places of a map."""
    for site in dict.fromkeys(n.split("/")[1] for n in values if n.startswith(part + "/")):
        gamma, beta = (values[f"{part}/{site}/{role}"] for role in ("scale", "shift"))

        def after(module: nn.Module, _args: Any, out: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            first = isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
            shape = (-1, 1, 1) if first else (-1,)
            return gamma.view(shape) * out + beta.view(shape)

        model.get_submodule(site).register_forward_hook(functools.partial(after, gamma=gamma, beta=beta))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("at", [None, "q,ffn.out"])
def test_ssf_is_a_model_whose_layers_are_scaled_and_shifted(kind: str, at: str | None) -> None:
    if kind == "gpt2" and at:
        at = "ffn.in,ffn.out"
    bench = tiny.bench(kind)
    b = bench.backbone
    parts: dict[str, Part] = {"ssf": Scale(at, shift=True), "head": Head()}
    values = values_for(bench, parts, seed=5)
    sites = {n.split("/")[1] for n in values if n.startswith("ssf/")}
    if at is None:
        assert sites == {s.name for s in (*b.linears, *b.norms, *b.patches)}
    model = own_model(b)
    set_head(model, b, values)
    by_hand(model, values, "ssf")
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_at_the_start_no_bit_is_changed(shift: bool, precision: str) -> None:
    bench = tiny.bench(tiny.backbone("bert", precision=precision))
    part, head = Scale(shift=shift), values_for(bench, {"head": Head()}, seed=1)
    start = {
        f"scale/{s.name}/{role}": init.draw(0).to(bench.dtype)
        for s in part.sites(bench.backbone)
        for role, init in part.tensors(bench.backbone, s).items()
    }
    batch = batch_of(bench, INDEX[:1])
    plain = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    assert torch.equal(plain, pack_of(bench, [{"scale": part, "head": Head()}], [start | head])(batch).logits)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2", "llama", "vit"])
def test_a_pack_is_its_clients_one_by_one(kind: str, shift: bool) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"scale": Scale(shift=shift), "lora": LoRA(2, 4.0, "all"), "head": Head()}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    together = pack_of(bench, [parts] * 3, values)(batch_of(bench, INDEX)).logits
    for i, one in enumerate(alone(bench, [parts] * 3, values)):
        valid = INDEX[i] >= 0
        torch.testing.assert_close(together[i][valid], one(batch_of(bench, INDEX[i : i + 1])).logits[0][valid], **CLOSE)


def test_beside_lora_it_scales_the_frozen_layer_alone() -> None:
    bench = tiny.bench("bert")
    parts: dict[str, Part] = {"scale": Scale("v", shift=True), "lora": LoRA(2, 4.0, "v"), "head": Head()}
    values = values_for(bench, parts, seed=2)
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    for site in Scale("v").sites(bench.backbone):
        a, b = (values[f"lora/{site.name}/{r}"] for r in "AB")
        gamma, beta = (values[f"scale/{site.name}/{r}"] for r in ("scale", "shift"))

        def after(_m: nn.Module, args: Any, out: Tensor, a: Any, b: Any, gamma: Any, beta: Any) -> Tensor:
            return gamma * out + beta + 2 * args[0] @ a.T @ b.T

        model.get_submodule(site.name).register_forward_hook(functools.partial(after, a=a, b=b, gamma=gamma, beta=beta))
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r'has no site "ffn\.gate"'):
        Scale("ffn.gate").sites(tiny.backbone("bert"))


def test_a_quantised_layer_is_scaled_as_it_is() -> None:
    pytest.importorskip("torchao")
    from weft.backbones.load import load

    b = load(tiny.folder("llama", "lm"), task="generation", device="cpu", precision="float32", quantise="int8")
    site = next(s for s in b.linears if s.role == "ffn.out")
    module, part = b.module(site.name), Scale("ffn.out")
    x = torch.randn(1, 4, site.d_in, generator=torch.Generator().manual_seed(0))
    gamma = 1 + 0.3 * torch.randn(1, site.d_in, generator=torch.Generator().manual_seed(1))
    out = module(x)
    got = out + part.apply(module, {"inner": gamma}, x, out)
    torch.testing.assert_close(got, module(gamma * x), rtol=0.0, atol=2e-2 * float(out.abs().max()))
    assert size(module.weight) < 4 * site.d_in * site.d_out
