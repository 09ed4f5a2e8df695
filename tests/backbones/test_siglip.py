"""SigLIP as a classifier is transformers' SigLIP: texts that fill their tower, no projection, a scale and a bias."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from by_hand import close
from exporting import FAST, RUN_CLOSE, exported
from towers_by_hand import CONTEXT, counted, in_context
from weaving import INDEX, batch_of, pack_of, values_for
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ClassContext
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.errors import UserError
from weft.export import load as load_export
from weft.methods import PromptFL
from weft.methods.reparameterized.fedit import FedIT

NAMES = ["w7", "w8 w9 w10", "w11 w12"]  # of unequal length
END = 1


@functools.cache
def backbone(precision: str = "float64") -> Backbone:
    return load(tiny.folder("siglip"), classes=NAMES, device="cpu", precision=precision, template="w1 w2 {}.")


@functools.cache
def own() -> Any:
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(tiny.folder("siglip"), dtype=torch.float64).eval().requires_grad_(False)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_logits_are_those_of_transformers_for_texts_padded_as_its_tokenizer_pads_them(precision: str, tolerance: float) -> None:
    b = backbone(precision)
    inputs = b.to_model(tiny.table(b).collate(np.arange(24)))
    texts = b.tokenizer([f"w1 w2 {n}." for n in NAMES], padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    found = b.model(**inputs | b.class_inputs()).logits
    wanted = own()(input_ids=texts, pixel_values=inputs["pixel_values"].double()).logits_per_image
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=tolerance)
    assert found.std(dim=1).min() > 1e-3, "logits that are all alike would prove nothing"
    assert own().logit_bias.abs() > 0.01


def test_its_tensors_have_the_names_of_transformers_model() -> None:
    assert set(backbone().model.state_dict()) == set(own().state_dict())


def test_its_towers_are_described() -> None:
    b = backbone()
    assert (len(b.blocks), b.d, b.picture_tokens, b.pools) == (3, 32, 4, "all")
    assert b.embedding is not None
    assert (b.embedding.d_in, b.words and b.words.d_out, len(b.text_linears)) == (32, 24, 12)
    called = {s.name for s in b.outer}
    assert called == {"vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"}, "PyTorch's attention calls no layer of its own"


def test_patches_are_what_the_pooling_would_make_of_each_alone() -> None:
    b = backbone()
    bench = tiny.bench(b)
    parts: dict[str, Part] = {"ours": ClassContext(3)}
    for of in (bench, replace(bench, prefix=PrefixCache(b))):
        pack = pack_of(of, [parts] * 3, [values_for(of, parts, seed=i) for i in range(3)])
        pixels = bench.table.collate(INDEX[0])["pixel_values"].double()
        for _ in range(2):
            found = pack.patches(batch_of(of, INDEX))
            head, hidden = own().vision_model.head, own().vision_model(pixels).last_hidden_state
            value = head.attention.in_proj_weight[64:] @ hidden.mT + head.attention.in_proj_bias[64:, None]
            pooled = head.attention.out_proj(value.mT)
            close(found[0], pooled + head.mlp(head.layernorm(pooled)), 1e-11)
            close(pack.images(batch_of(of, INDEX))[0], own().vision_model(pixels).pooler_output, 1e-11)
    assert found.shape == (3, 4, 4, 32)


def by_hand(context: Tensor, pixels: Tensor, names: Sequence[str] = NAMES) -> Tensor:
    """Logits [n, C]: context, name, full stop, end, and the tokens that fill the tower, through transformers' model."""
    b, model = backbone(), own()
    rows = []
    for name in names:
        words = b.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"]
        row = [CONTEXT] * len(context) + words + [END]
        rows.append(row + [END] * (64 - len(row)))
    run = lambda ids: model(input_ids=ids, pixel_values=pixels).logits_per_image  # noqa: E731
    return in_context(model.text_model.embeddings.token_embedding, context, run, rows)


@pytest.mark.parametrize("cached", [False, True])
def test_a_context_stands_before_the_names_in_a_text_that_fills_the_tower(cached: bool) -> None:
    b = backbone()
    bench = tiny.bench(b)
    bench = replace(bench, prefix=PrefixCache(b)) if cached else bench
    parts: dict[str, Part] = {"ours": ClassContext(3)}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    pack = pack_of(bench, [parts] * 3, values)
    batch = batch_of(bench, INDEX)
    found = pack(batch).logits
    for k in range(3):
        (context,) = values[k].values()
        assert isinstance(context, Tensor)
        valid = INDEX[k] >= 0
        wanted = by_hand(context, bench.table.collate(INDEX[k][valid])["pixel_values"].double())
        close(found[k][valid], wanted, 1e-10)
    assert pack.scale.shape == ()
    cosines = F.normalize(pack.images(batch), dim=-1) @ pack.texts({"ours": 1.0}).mT
    close((pack.scale * cosines)[INDEX >= 0], (found - own().logit_bias)[INDEX >= 0], 1e-11)


def test_promptfl_trains_on_it_and_its_model_is_transformers_with_the_trained_context() -> None:
    b = tiny.backbone("siglip")
    plain = tiny.federation(PromptFL(tokens=3, batch=4, optim=FAST), b, rounds=2)
    before = plain.global_logits()
    plain.run()
    (context,) = plain.server.shared.values()
    assert isinstance(context, Tensor)
    pixels = plain.bench.table.collate(np.arange(len(plain.bench.table)))["pixel_values"].double()
    close(plain.global_logits().double(), by_hand(context, pixels, tiny.names(3)), 1e-5)
    assert (plain.global_logits() - before).abs().max() > 1e-2
    cached = tiny.federation(PromptFL(tokens=3, batch=4, optim=FAST), b, rounds=2, prefix=True)
    with counted(b.module(b.blocks[0])) as seen:
        cached.run()
    assert seen == [len(cached.bench.table)], "every picture goes through its tower once"
    close(cached.global_logits(), plain.global_logits(), 1e-5)


def test_lora_in_both_towers_comes_back_from_its_export(tmp_path: Path) -> None:
    method = FedIT(rank=2, alpha=4.0, sites="q,v,text.q", batch=4, optim=FAST)
    run = tiny.federation(method, tiny.backbone("siglip", precision="float32"), sizes=(5, 4, 0, 3), rounds=1)
    before = run.global_logits()
    after = run.run().global_logits()
    assert not torch.allclose(before, after, **RUN_CLOSE)
    exported(run, tmp_path)
    rows = tiny.states((5, 4, 0, 3), reads="images")[0]
    torch.testing.assert_close(load_export(tmp_path, device="cpu", precision="float32").logits_of(rows), after, **RUN_CLOSE)


def test_what_does_not_fit_into_its_text_tower_is_named() -> None:
    long = "_".join(["w1"] * 64)
    with pytest.raises(UserError, match=f'class "{long}" makes a text of 65 tokens, but the text tower takes 64'):
        load(tiny.folder("siglip"), classes=["w7", long], device="cpu", precision="float64", template="{}")
    just = "_".join(["w1"] * 63)
    load(tiny.folder("siglip"), classes=["w7", just], device="cpu", precision="float64", template="{}")


def test_its_tower_of_pictures_classifies_with_a_head_too() -> None:
    b = tiny.backbone("siglip", task="classification")
    assert (b.names, [h.name for h in b.heads]) == (None, ["classifier"])


def test_lora_inside_the_tower_of_pictures_keeps_embeddings_from_being_cached() -> None:
    b = backbone()
    bench = replace(tiny.bench(b), prefix=PrefixCache(b))
    last = ",".join(s.name for s in b.linears if s.block == 2)
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, f"names:{last}")}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    pack = pack_of(bench, [parts] * 3, values)
    wanted = pack_of(replace(bench, prefix=None), [parts] * 3, values)(batch_of(bench, INDEX)).logits
    for _ in range(2):
        close(pack(batch_of(bench, INDEX)).logits[INDEX >= 0], wanted[INDEX >= 0], 1e-11)
    assert pack.cut() == 2
