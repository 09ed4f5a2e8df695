"""Tokens that a method puts into rows on the way, what the head reads then, and what it makes of other tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import images_by_hand as hand
import tiny
from by_hand import close
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ClassContext
from weft.backbones.prefix import PrefixCache
from weft.errors import WeftError
from weft.federation.bench import Bench
from weft.federation.pack import Pack

HEAD: dict[str, Part] = {"head": Head()}
HIGH: dict[str, Part] = {"lora": LoRA(2, 4.0, "q", blocks=(2,)), "head": Head()}


def bench(cached: bool = False, recompute: bool = False) -> Bench:
    found = tiny.bench(tiny.backbone("vit", task="classification"))
    return replace(found, prefix=PrefixCache(found.backbone) if cached else None, recompute=recompute)


def packed(of: Bench, parts: Mapping[str, Part] = HEAD) -> Pack:
    return pack_of(of, [parts] * 3, [values_for(of, parts, seed=i) for i in range(3)])


def tokens(of: Bench, blocks: Mapping[int, int]) -> dict[int, Tensor]:
    """Of every row others, [3, 4, n, d] for each block."""
    draw = torch.Generator().manual_seed(5)
    return {
        block: torch.randn(*INDEX.shape, n, of.backbone.d, generator=draw, dtype=torch.float64) for block, n in blocks.items()
    }


def by_hand(of: Bench, k: int, insert: Mapping[int, Tensor]) -> Tensor:
    """[b, T, d] of a client's rows behind the last norm, block by block with transformers' own."""
    valid = INDEX[k] >= 0
    vit = hand.vit(of.backbone.path)
    x = vit.embeddings(of.table.collate(INDEX[k][valid])["pixel_values"].double())
    for block, layer in enumerate(vit.layers):
        if block in insert:
            x = torch.cat([x[:, :1], insert[block][k][valid], x[:, 1:]], 1)
        x = layer(x, None)
        x = x[0] if isinstance(x, tuple) else x
    return vit.layernorm(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("blocks", [{0: 2}, {1: 3}, {0: 1, 2: 4}, {2: 1}])
@pytest.mark.parametrize("cached", [False, True])
def test_logits_and_features_are_those_of_the_models_own_blocks(blocks: dict[int, int], cached: bool) -> None:
    of = bench(cached)
    pack, insert = packed(of), tokens(of, blocks)
    batch = batch_of(of, INDEX)
    for _ in range(2):  # the second time from the cache, which must not skip a block where tokens enter
        found, features = pack(batch, insert=insert).logits, pack.features(batch, insert=insert)
        for k in range(3):
            valid = INDEX[k] >= 0
            wanted = by_hand(of, k, insert)[:, 0]
            weight, bias = (pack.tensors[f"head/classifier/{r}"][k] for r in ("weight", "bias"))
            close(features[k][valid], wanted, 1e-9)
            close(found[k][valid], wanted @ weight.T + bias, 1e-9)
    close(pack.features(batch, use={})[0], by_hand(of, 0, {})[:, 0], 1e-9)


def test_a_pass_without_tokens_after_one_with_them_has_none() -> None:
    of = bench(True)
    pack, batch = packed(of), batch_of(of, INDEX)
    before = pack(batch).logits
    pack(batch, insert=tokens(of, {1: 2}))
    assert torch.equal(pack(batch).logits, before)
    assert list(tiny.hooks(of.backbone.model)) == []


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_gradients_come_to_the_tokens_and_parts_of_each_client_as_if_it_were_alone(recompute: bool, cached: bool) -> None:
    of = bench(cached, recompute)
    pack = leaves(packed(of, HIGH), "*")
    insert = {b: t.requires_grad_(True) for b, t in tokens(of, {1: 2, 2: 1}).items()}
    batch = batch_of(of, INDEX)
    loss = pack.loss(pack(batch, insert=insert), batch)
    slopes = torch.autograd.grad(loss.sum(), list(insert.values()), retain_graph=True)
    mine = grads(pack, loss, "*")
    for k in range(3):
        (one,) = alone(bench(), [HIGH], [values_for(of, HIGH, seed=k)])
        leaves(one, "*")
        single = batch_of(of, INDEX[k : k + 1])
        own = {b: t[k : k + 1].detach().requires_grad_(True) for b, t in insert.items()}
        alone_loss = one.loss(one(single, insert=own), single)
        for a, b in zip(slopes, torch.autograd.grad(alone_loss.sum(), list(own.values()), retain_graph=True), strict=True):
            torch.testing.assert_close(a[k], b[0], **CLOSE)
        for name, slope in grads(one, alone_loss, "*").items():
            torch.testing.assert_close(mine[name][k], slope[0], **CLOSE)


@pytest.mark.parametrize("cached", [False, True])
def test_the_mean_of_what_the_head_makes_of_tokens_is_what_it_makes_of_their_mean(cached: bool) -> None:
    of = bench(cached)
    pack, insert = packed(of), tokens(of, {1: 2})
    batch = batch_of(of, INDEX)
    _, states = pack.with_hidden(batch, (2,), insert=insert)
    hidden, own = states[2]
    assert own.shape == hidden.shape[:3] == (3, 4, of.backbone.picture_tokens + 2)
    found = pack.read_tokens(batch, hidden[:, :, :3]).mean(2)
    for k in range(3):
        valid = INDEX[k] >= 0
        weight, bias = (pack.tensors[f"head/classifier/{r}"][k] for r in ("weight", "bias"))
        close(found[k][valid], by_hand(of, k, insert)[:, :3].mean(1) @ weight.T + bias, 1e-9)


def test_a_head_that_reads_the_mean_of_patches_reads_a_token_in_their_place() -> None:
    of = tiny.bench(tiny.backbone("clip", task="classification"))
    pack, batch = packed(of), batch_of(of, INDEX)
    states = torch.randn(*INDEX.shape, 3, of.backbone.d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = pack.read_tokens(batch, states)
    for k in range(3):
        weight, bias = (pack.tensors[f"head/classifier/{r}"][k] for r in ("weight", "bias"))
        close(found[k], states[k] @ weight.T + bias, 1e-10)


def test_tokens_enter_rows_of_pictures_at_a_block_that_everybody_has() -> None:
    of = bench()
    pack, batch = packed(of), batch_of(of, INDEX)
    with pytest.raises(WeftError, match="blocks 0 to 2, not at"):
        pack(batch, insert=tokens(of, {3: 1}))
    pack.hold(torch.tensor([[True, False, True]] * 3))
    with pytest.raises(WeftError, match="every client has all blocks"):
        pack(batch, insert=tokens(of, {1: 1}))
    text = tiny.bench("bert")
    with pytest.raises(WeftError, match="rows of pictures alone"):
        packed(text)(batch_of(text, INDEX), insert=tokens(text, {1: 1}))
    with pytest.raises(WeftError, match="rows of pictures alone"):
        packed(text).read_tokens(batch_of(text, INDEX), tokens(text, {1: 1})[1])


def test_features_are_of_a_head_that_reads_a_row() -> None:
    of = tiny.bench("clip")
    parts: dict[str, Part] = {"ours": ClassContext(3)}
    pack = packed(of, parts)
    batch = batch_of(of, INDEX)
    assert torch.equal(pack.features(batch), pack.images(batch))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5"])
def test_features_of_texts_are_of_the_token_that_counts_whatever_else_the_head_reads(kind: str, cached: bool) -> None:
    plain = tiny.bench(kind)
    of = replace(plain, prefix=PrefixCache(plain.backbone) if cached else None)
    pack, batch = packed(of), batch_of(of, INDEX)
    assert len(set(of.table.lengths[INDEX[INDEX >= 0]].tolist())) > 1
    logits, features, valid = pack(batch).logits, pack.features(batch), torch.from_numpy(INDEX >= 0)
    (head,) = of.backbone.heads
    weight = pack.tensors[f"head/{head.name}/weight"]
    bias = pack.tensors[f"head/{head.name}/bias"].unsqueeze(1) if head.bias else 0
    close((features @ weight.mT + bias)[valid], logits[valid], 1e-9)
