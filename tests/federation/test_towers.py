"""Pictures, patches and class names by hand are what the whole model makes of them, from the cache as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import images_by_hand as hand
import tiny
from by_hand import close
from weaving import INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ClassContext
from weft.backbones.prefix import PrefixCache
from weft.errors import WeftError
from weft.federation.bench import Bench

CONTEXTS: dict[str, Part] = {"ours": ClassContext(3), "mine": ClassContext(5, "front")}


def bench(cached: bool) -> Bench:
    found = tiny.bench("clip")
    return replace(found, prefix=PrefixCache(found.backbone)) if cached else found


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("use", [{"ours": 1.0}, {"mine": 1.0}, {}])
@pytest.mark.parametrize("clients", [None, [2, 0]])
def test_logits_are_the_scaled_cosines_of_pictures_and_class_names(
    cached: bool, use: dict[str, float], clients: list[int] | None
) -> None:
    of = bench(cached)
    pack = pack_of(of, [CONTEXTS] * 3, [values_for(of, CONTEXTS, seed=i) for i in range(3)])
    batch = batch_of(of, INDEX if clients is None else INDEX[clients], clients)
    found = pack.scale * F.normalize(pack.images(batch), dim=-1) @ pack.texts(use, batch.clients).mT
    valid = batch.index >= 0
    close(found[valid], pack(batch, use).logits[valid], 1e-12)


def test_class_names_are_those_of_transformers_in_each_clients_context() -> None:
    of = bench(True)
    values = [values_for(of, CONTEXTS, seed=i) for i in range(2)]
    found = pack_of(of, [CONTEXTS] * 2, values).texts({"ours": 1.0})
    for k in range(2):
        (context,) = (v for n, v in values[k].items() if n.startswith("ours/"))
        assert isinstance(context, torch.Tensor)
        close(found[k], hand.coop(of.backbone, tiny.names(3), context), 1e-10)


@pytest.mark.parametrize("cached", [False, True])
def test_patches_go_through_the_last_norm_and_the_projection_without_the_class_token(cached: bool) -> None:
    of = bench(cached)
    pack = pack_of(of, [CONTEXTS] * 3, [values_for(of, CONTEXTS, seed=i) for i in range(3)])
    batch = batch_of(of, INDEX)
    clip = hand.clip(of.backbone.path)
    for _ in range(2):  # computed, then read
        found = pack.patches(batch)
        for k in range(3):
            valid = INDEX[k] >= 0
            pixels = of.table.collate(INDEX[k][valid])["pixel_values"].double()
            whole = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
            wanted = clip.visual_projection(clip.vision_model.post_layernorm(whole))
            close(found[k][valid], wanted[:, 1:], 1e-10)
            close(pack.images(batch)[k][valid], wanted[:, 0], 1e-10)
    assert found.shape == (3, 4, of.backbone.picture_tokens - 1, 16)


def test_what_is_kept_goes_to_a_file_when_memory_is_full() -> None:
    of = bench(True)
    small = replace(of, prefix=PrefixCache(of.backbone, memory=2000))
    packs = [pack_of(b, [CONTEXTS], [values_for(b, CONTEXTS, seed=0)]) for b in (of, small)]
    batch = batch_of(of, INDEX[:1])
    a, b = (pack.patches(batch) for pack in packs)
    assert torch.equal(a, b)
    assert small.prefix is not None
    assert small.prefix._file is not None


def test_a_gradient_comes_to_the_context_of_its_own_client_alone() -> None:
    of = bench(True)
    pack = leaves(pack_of(of, [CONTEXTS] * 3, [values_for(of, CONTEXTS, seed=i) for i in range(3)]), "*")
    batch = batch_of(of, INDEX)
    images = pack.images(batch)
    assert not images.requires_grad
    slopes = grads(pack, (images[1] @ pack.texts({"ours": 1.0})[1].mT).sum(), "*")
    (name,) = (n for n in slopes if n.startswith("ours/"))
    assert [bool(g.any()) for g in slopes[name]] == [False, True, False]
    assert not any(bool(slopes[n].any()) for n in slopes if n.startswith("mine/"))


def test_embeddings_are_not_taken_as_frozen_where_parts_would_change_them() -> None:
    of = bench(True)
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "q"), "ours": ClassContext(3)}
    pack = pack_of(of, [parts], [values_for(of, parts, seed=0)])
    with pytest.raises(WeftError, match='"lora" sits in the tower of pictures'):
        pack.images(batch_of(of, INDEX[:1]))
    text: dict[str, Part] = {"lora": LoRA(2, 4.0, "text.q"), "ours": ClassContext(3)}
    pack = pack_of(of, [text], [values_for(of, text, seed=0)])
    assert pack.patches(batch_of(of, INDEX[:1])).shape[1] == 4
    a, b = pack.texts({"ours": 1.0, "lora": 1.0}), pack.texts({"ours": 1.0})
    assert (a - b).abs().max() > 1e-3


def test_there_are_no_towers_in_other_backbones() -> None:
    of = tiny.bench("vit")
    parts: dict[str, Part] = {"head": Head()}
    pack = pack_of(of, [parts], [values_for(of, parts, seed=0)])
    for ask in (lambda: pack.images(batch_of(of, INDEX[:1])), lambda: pack.texts({}), lambda: pack.embed([np.arange(2)])):
        with pytest.raises(WeftError, match="no embedding of whole rows"):
            ask()


def test_a_pass_takes_one_context() -> None:
    of = bench(True)
    pack = pack_of(of, [CONTEXTS], [values_for(of, CONTEXTS, seed=0)])
    with pytest.raises(WeftError, match='"ours" and "mine" both have tokens of their own in one place'):
        pack(batch_of(of, INDEX[:1]))
