"""Norms with weights and biases of the clients' own are norms with these parameters, of whatever kind they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.norm import Norm, standardised
from weft.adaptation.part import Part
from weft.errors import UserError

KINDS = ["bert", "roberta", "deberta-v2", "gpt2", "llama", "qwen3", "gemma", "t5", "modernbert", "vit"]
ROOTS = ("llama", "qwen3", "gemma", "t5")
"""With RMS norms, which transformers computes in float32 whatever comes in: gradients have its rounding, and with Gemma, which
multiplies by the weight in it too, so have outputs.
"""
IN_FLOAT32 = {"rtol": 5e-5, "atol": 2e-6}
PARTS: dict[str, Part] = {"norm": Norm(), "head": Head()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_model_with_those_norms_in_outputs_and_gradients(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    values = values_for(bench, PARTS, seed=4)
    model = own_model(b)
    set_head(model, b, values)
    chosen = {}
    for site in b.norms:
        for role, p in model.get_submodule(site.name).named_parameters():
            with torch.no_grad():
                p.copy_(values[f"norm/{site.name}/{role}"])
            chosen[f"norm/{site.name}/{role}"] = p.requires_grad_()
    assert len(chosen) == sum(1 + s.bias for s in b.norms) > 0
    batch = batch_of(bench, INDEX[:1])
    pack = leaves(pack_of(bench, [PARTS], [values]), "norm")
    got, wanted = pack(batch), logits_of(model, bench, INDEX[0])
    torch.testing.assert_close(got.logits[0], wanted, **({"rtol": 0.0, "atol": 1e-5} if kind == "gemma" else CLOSE))
    found = grads(pack, pack.loss(got, batch), "norm")
    expected = torch.nn.functional.cross_entropy(wanted, batch.labels.flatten())
    slopes = torch.autograd.grad(expected, list(chosen.values()), allow_unused=True)
    for name, slope in zip(chosen, slopes, strict=True):
        other = torch.zeros_like(found[name][0]) if slope is None else slope
        torch.testing.assert_close(found[name][0], other, **(IN_FLOAT32 if kind in ROOTS else CLOSE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_is_its_clients_one_by_one(kind: str) -> None:
    bench = tiny.bench(kind)
    values = [values_for(bench, PARTS, seed=i) for i in range(3)]
    together = pack_of(bench, [PARTS] * 3, values)(batch_of(bench, INDEX)).logits
    for i, one in enumerate(alone(bench, [PARTS] * 3, values)):
        valid = INDEX[i] >= 0
        torch.testing.assert_close(together[i][valid], one(batch_of(bench, INDEX[i : i + 1])).logits[0][valid], **CLOSE)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_at_the_start_no_bit_is_changed(kind: str, precision: str) -> None:
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    head = values_for(bench, {"head": Head()}, seed=1)
    start = {
        f"norm/{s.name}/{role}": init.draw(0).to(bench.dtype)
        for s in Norm().sites(bench.backbone)
        for role, init in Norm().tensors(bench.backbone, s).items()
    }
    batch = batch_of(bench, INDEX[:1])
    plain = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    assert torch.equal(plain, pack_of(bench, [PARTS], [start | head])(batch).logits)


def test_a_norm_whose_pretrained_weight_is_zero_can_be_tuned() -> None:
    norm = nn.LayerNorm(4).double()
    nn.init.zeros_(norm.weight)
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(standardised(norm, x), nn.functional.layer_norm(x, (4,)))
    assert isinstance(norm.weight, nn.Parameter)
    assert not norm.weight.any()


def test_what_norms_have_is_what_they_start_from() -> None:
    b = tiny.backbone("bert", precision="bfloat16")
    site = b.norms[0]
    start: Tensor = Norm().tensors(b, site)["weight"].draw(0)
    assert start.dtype == torch.float32
    frozen = b.module(site.name).weight
    assert not torch.equal(start, frozen.float())  # of the file, which bfloat16 has rounded
    assert torch.equal(start.bfloat16(), frozen)


def test_a_backbone_without_norms_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=r"has no norms with weights: choose another tune\.kind"):
        Norm().sites(replace(tiny.backbone("bert"), norms=[]))
