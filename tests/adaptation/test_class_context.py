"""A context around class names is CoOp, put together by hand; the text tower runs once for each client, and only if it must."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import images_by_hand as hand
import tiny
from by_hand import close
from weaving import CLOSE, INDEX, alone, assert_as_alone, batch_of, pack_of, values_for
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ClassContext
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.tasks.classification import Classification

NAMES = ("w7", "w8_w9_w10", "w11 w12")  # of unequal length, so that rows are padded
NAME = "context/text_model.embeddings.token_embedding/context"


def clip() -> Backbone:
    return load(tiny.folder("clip"), classes=NAMES, device="cpu", precision="float64", template="w1 w2 {}.")


def bench_of(b: Backbone) -> Bench:
    return replace(tiny.bench(b), task=Classification(NAMES))


def spoken() -> list[str]:
    return [n.replace("_", " ") for n in NAMES]


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("where", ["end", "middle", "front"])
@pytest.mark.parametrize("tokens", [1, 4, 5])
def test_logits_are_those_of_texts_put_together_by_hand(tokens: int, where: str, per_class: bool) -> None:
    bench = bench_of(clip())
    parts = {"context": ClassContext(tokens, where, per_class)}
    values = values_for(bench, parts, seed=1)
    context = values[NAME]
    assert isinstance(context, torch.Tensor)
    assert context.shape == ((3, tokens, 24) if per_class else (tokens, 24))
    found = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    z = hand.image_embedding(bench.backbone, bench.table.collate(INDEX[0])["pixel_values"])
    close(found, hand.similarity(bench.backbone, z, hand.coop(bench.backbone, spoken(), context, where)), 1e-10)


def test_where_the_name_stands_and_whose_context_it_is_make_a_difference() -> None:
    bench = bench_of(clip())
    values = values_for(bench, {"context": ClassContext(4)}, seed=1)
    found = [
        pack_of(bench, [{"context": ClassContext(4, where)}], [values])(batch_of(bench, INDEX[:1])).logits
        for where in ("end", "middle", "front")
    ]
    assert all((a - b).abs().max() > 1e-2 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("clients", [None, [2, 0]])
def test_each_client_of_a_pack_has_the_class_names_through_its_own_context(clients: list[int] | None, per_class: bool) -> None:
    found = assert_as_alone(bench_of(clip()), [{"context": ClassContext(3, "middle", per_class)}] * 3, clients)
    assert all(NAME in slopes for slopes in found.values())


def test_a_phrase_gives_the_context_its_length_and_its_words() -> None:
    b = clip()
    for per_class in (False, True):
        part = ClassContext(16, phrase="w1 w2 w5", per_class=per_class)
        init = part.tensors(b, part.sites(b)[0])["context"]
        wanted = hand.word_embeddings(b, "w1 w2 w5")
        close(init.draw(0).double(), wanted.expand(3, 3, 24) if per_class else wanted, 1e-7)


def test_without_a_phrase_it_starts_normal_and_all_classes_apart() -> None:
    b = clip()
    part = ClassContext(100, per_class=True, std=0.02)
    start = part.tensors(b, part.sites(b)[0])["context"].draw(0)
    assert 0.019 < start.std() < 0.021
    assert abs(start.mean()) < 0.001
    assert not torch.equal(start[0], start[1])


def test_an_unknown_place_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r'unknown place "frnt".*Did you mean "front"'):
        ClassContext(4, "frnt")


@pytest.mark.parametrize("tokens", [0, -3])
def test_a_context_of_nothing_is_refused(tokens: int) -> None:
    with pytest.raises(UserError, match="tokens ≥ 1"):
        ClassContext(tokens)


def test_a_phrase_without_words_is_refused() -> None:
    with pytest.raises(UserError, match="holds no words"):
        ClassContext(phrase="  ").length(clip())


def test_a_context_too_long_for_a_class_name_is_refused_by_that_name() -> None:
    bench = bench_of(clip())
    parts = {"context": ClassContext(60)}
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=0)])
    with pytest.raises(UserError, match='class "w8_w9_w10" makes a text of 66 tokens, but the text tower takes 64'):
        pack(batch_of(bench, INDEX[:1]))
    parts = {"context": ClassContext(58)}  # start, end, stop and three words
    pack_of(bench, [parts], [values_for(bench, parts, seed=0)])(batch_of(bench, INDEX[:1]))


@pytest.mark.parametrize("model", ["vit", "bert"])
def test_a_backbone_without_a_text_tower_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="has no text tower for class names"):
        ClassContext().sites(tiny.backbone(model))


# the text tower's cost ------------------------------------------------------------------------------------------------


class Runs:
    """Rows that the text tower has read in each of its runs; of the names here, which begin alike, one holds all."""

    def __init__(self, b: Backbone):
        self.rows: list[int] = []
        self.handle = b.model.text_model.register_forward_hook(self._see)

    def _see(self, _module: object, _args: object, out: Any) -> None:
        self.rows.append(len(out.pooler_output))


def test_the_text_tower_reads_all_class_names_once_for_each_client_of_the_batch() -> None:
    bench = bench_of(clip())
    parts: dict[str, Part] = {"context": ClassContext(2)}
    pack = pack_of(bench, [parts] * 3, [values_for(bench, parts, seed=i) for i in range(3)])
    bench.backbone.class_inputs()
    runs = Runs(bench.backbone)
    pack(batch_of(bench, INDEX))
    pack(batch_of(bench, INDEX[:2], [0, 2]))
    pack(batch_of(bench, INDEX), {})  # off: the frozen embeddings of the names
    runs.handle.remove()
    assert runs.rows == [3, 2]


def test_with_the_context_off_logits_are_zero_shot() -> None:
    bench = bench_of(clip())
    parts: dict[str, Part] = {"context": ClassContext(2)}
    found = pack_of(bench, [parts], [values_for(bench, parts, seed=0)])(batch_of(bench, INDEX[:1]), {}).logits[0]
    z = hand.image_embedding(bench.backbone, bench.table.collate(INDEX[0])["pixel_values"])
    close(found, hand.similarity(bench.backbone, z, hand.zero_shot(bench.backbone, spoken(), "w1 w2 {}.")), 1e-10)


# LoRA in the text tower -----------------------------------------------------------------------------------------------


def merged(bench: Bench, values: dict[str, Any], scale: float) -> torch.Tensor:
    """Text features of transformers' text tower with W0 + scale·B A."""
    import copy

    b = bench.backbone
    model = copy.deepcopy(b.model)
    with torch.no_grad():
        for name, value in values.items():
            _, site, role = name.split("/")
            if role == "B":
                model.get_submodule(site).weight += scale * value @ values[name[:-1] + "A"]
    assert b.names is not None
    inputs = b.to_model(bench.table.collate(INDEX[0]))
    found: torch.Tensor = model(**inputs, input_ids=b.names.ids()).logits
    return found


@pytest.mark.parametrize("sites", ["text.q,text.v", "text.ffn", "q,text.v", "text.all,all"])
def test_lora_in_the_text_tower_changes_the_class_names_of_its_own_client(sites: str) -> None:
    bench = bench_of(clip())
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, sites)}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    found = pack_of(bench, [parts] * 3, values)(batch_of(bench, np.stack([INDEX[0]] * 3))).logits
    for k in range(3):
        close(found[k], merged(bench, values[k], 2.0), 1e-10)


def test_lora_and_context_act_together_in_one_text_tower() -> None:
    bench = bench_of(clip())
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "text.q,text.v"), "context": ClassContext(3)}
    values = [values_for(bench, parts, seed=i) for i in range(2)]
    together = pack_of(bench, [parts] * 2, values)(batch_of(bench, INDEX[:2])).logits
    for k, one in enumerate(alone(bench, [parts] * 2, values)):
        torch.testing.assert_close(together[k], one(batch_of(bench, INDEX[k : k + 1])).logits[0], **CLOSE)
    without = pack_of(bench, [parts] * 2, values)(batch_of(bench, INDEX[:2]), {"context": 1.0}).logits
    assert (without - together).abs().max() > 1e-2


def test_a_text_tower_is_not_among_the_blocks_that_a_client_may_lack() -> None:
    """Block 0 of the text tower is not block 0 of the image tower."""
    bench = bench_of(clip())
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "text.q")}
    pack: Pack = pack_of(bench, [parts] * 2, [values_for(bench, parts, seed=i) for i in range(2)])
    pack.hold(torch.tensor([[False, True, True], [True, True, True]]))
    assert all(bool(pack.rows(n).all()) for n in pack.tensors)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_context_stands_before_words_of_its_own_as_before_class_names(per_class: bool) -> None:
    words = ("w5 w7", "w8_w9", "w3", "w1 w2 w11")
    bench = bench_of(clip())
    parts: dict[str, Part] = {"context": ClassContext(4, per_class=per_class, words=words), "names": ClassContext(2)}
    values = values_for(bench, parts, seed=1)
    context = values[NAME]
    assert isinstance(context, torch.Tensor)
    assert context.shape == ((4, 4, 24) if per_class else (4, 24))
    pack = pack_of(bench, [parts], [values])
    close(pack.texts({"context": 1.0})[0], hand.coop(bench.backbone, [w.replace("_", " ") for w in words], context), 1e-10)
    assert pack.texts({"names": 1.0}).shape == (1, 3, 16)


def test_words_that_are_too_long_are_told_by_their_own_name() -> None:
    words = ("w1", " ".join(["w2"] * 60))
    bench = bench_of(clip())
    parts: dict[str, Part] = {"context": ClassContext(4, words=words)}
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=1)])
    with pytest.raises(UserError, match=r'^"w2 w2.* w2" with its prompt makes a text of 67 tokens, but the text tower takes 64'):
        pack.texts({"context": 1.0})
