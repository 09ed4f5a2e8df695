"""Tokens among the patches are VPT, run block by block; a residual on the embedding, and tensors that sit nowhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import images_by_hand as hand
import tiny
from by_hand import close
from weaving import INDEX, assert_as_alone, batch_of, pack_of, values_for
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.residual import Residual
from weft.adaptation.tokens import ImageTokens
from weft.adaptation.values import Values
from weft.backbones.backbone import Backbone
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench


def backbone(kind: str) -> Backbone:
    return tiny.backbone(kind, task="classification")


def pixels(bench: Bench, rows: np.ndarray) -> torch.Tensor:
    return bench.table.collate(rows)["pixel_values"]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_logits_are_those_of_the_models_own_blocks_run_with_the_tokens_by_hand(kind: str, deep: bool) -> None:
    bench = tiny.bench(backbone(kind))
    parts: dict[str, Part] = {"prompt": ImageTokens(4, deep), "head": Head()}
    values = values_for(bench, parts, seed=1)
    assert sum(n.startswith("prompt/") for n in values) == (3 if deep else 1)
    found = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    close(found, hand.prompted(bench.backbone, values, pixels(bench, INDEX[0])), 1e-9)  # type: ignore[arg-type]


def test_deep_and_shallow_prompts_differ_even_where_the_first_block_gets_the_same() -> None:
    bench = tiny.bench("vit")
    deep: dict[str, Part] = {"prompt": ImageTokens(4, True), "head": Head()}
    values = values_for(bench, deep, seed=1)
    shallow = {n: v for n, v in values.items() if ".1/" not in n and ".2/" not in n}
    a = pack_of(bench, [deep], [values])(batch_of(bench, INDEX[:1])).logits
    b = pack_of(bench, [{"prompt": ImageTokens(4), "head": Head()}], [shallow])(batch_of(bench, INDEX[:1])).logits
    assert (a - b).abs().max() > 1e-2


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("clients", [None, [2, 0]])
def test_each_client_of_a_pack_has_its_own_tokens(kind: str, deep: bool, clients: list[int] | None) -> None:
    assert_as_alone(tiny.bench(backbone(kind)), [{"prompt": ImageTokens(3, deep), "head": Head()}] * 3, clients)


def test_with_the_tokens_off_the_model_is_the_frozen_one_and_no_hook_stays() -> None:
    bench = tiny.bench("vit")
    parts: dict[str, Part] = {"prompt": ImageTokens(3, True), "head": Head()}
    values = values_for(bench, parts, seed=0)
    pack = pack_of(bench, [parts], [values])
    pack(batch_of(bench, INDEX[:1]))
    found = pack(batch_of(bench, INDEX[:1]), {}).logits[0]
    close(found, hand.prompted(bench.backbone, values, pixels(bench, INDEX[0]), part="none"), 1e-9)  # type: ignore[arg-type]
    assert list(tiny.hooks(bench.backbone.model)) == []


def test_rows_of_a_client_without_a_block_skip_it_and_have_as_many_tokens_as_the_others() -> None:
    bench = tiny.bench("vit")
    parts: dict[str, Part] = {"prompt": ImageTokens(3), "head": Head()}
    values = [values_for(bench, parts, seed=i) for i in range(2)]
    pack = pack_of(bench, [parts] * 2, values)
    pack.hold(torch.tensor([[True, False, True], [True, True, True]]))
    found = pack(batch_of(bench, INDEX[:2])).logits
    vit = hand.vit(bench.backbone.path)
    x = vit.embeddings(pixels(bench, INDEX[0]).double())
    (tokens,) = (v for n, v in values[0].items() if n.startswith("prompt/"))
    assert isinstance(tokens, torch.Tensor)
    x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
    x = vit.layers[2](vit.layers[0](x, None), None)
    weight, bias = (values[0][f"head/classifier/{r}"] for r in ("weight", "bias"))
    close(found[0], vit.layernorm(x)[:, 0] @ weight.T + bias, 1e-9)  # type: ignore[union-attr,operator]
    close(found[1], hand.prompted(bench.backbone, values[1], pixels(bench, INDEX[1])), 1e-9)  # type: ignore[arg-type]


def test_tokens_start_uniform_by_the_rule_of_vpt() -> None:
    b = tiny.backbone("vit")
    part = ImageTokens(200)
    (site,) = part.sites(b)
    start = part.tensors(b, site)["tokens"].draw(0)
    v = math.sqrt(6 / (3 * 4**2 + 32))  # patches of 4×4 pixels in 3 colours, 32 features
    assert start.shape == (200, 32)
    assert start.abs().max() <= v
    assert start.abs().max() > 0.99 * v
    assert math.isclose(float(start.std()), v / math.sqrt(3), rel_tol=0.03)


def test_no_tokens_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="tokens ≥ 1"):
        ImageTokens(0)


def test_a_backbone_for_texts_is_refused() -> None:
    with pytest.raises(UserError, match="has no picture patches"):
        ImageTokens().sites(tiny.backbone("bert"))


# a residual on the embedding --------------------------------------------------------------------------------------------


def by_hand(bench: Bench, values: dict[str, torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    b = bench.backbone
    z = hand.image_embedding(b, pixels(bench, rows))
    down, up = (values[f"x/image_embedding/{r}"] for r in ("down", "up"))
    z = z + F.relu(F.linear(F.relu(F.linear(z, down)), up))
    return hand.similarity(b, z, hand.zero_shot(b, tiny.names(3), "a photo of a {}."))


@pytest.mark.parametrize("ratio", [4, 1, 100])
def test_a_residual_adds_two_rectified_layers_to_the_embedding_before_it_is_normalised(ratio: int) -> None:
    bench = tiny.bench("clip")
    parts: dict[str, Part] = {"x": Residual(ratio)}
    values = [values_for(bench, parts, seed=i, scale=1.0) for i in range(3)]
    assert values[0]["x/image_embedding/down"].shape == (max(16 // ratio, 1), 16)
    pack = pack_of(bench, [parts] * 3, values)
    found = pack(batch_of(bench, INDEX)).logits
    embedded = torch.stack(pack.embed([np.abs(r) for r in INDEX]))
    tail = pack.tail(embedded).logits
    for k in range(3):
        valid = INDEX[k] >= 0
        wanted = by_hand(bench, values[k], INDEX[k][valid])  # type: ignore[arg-type]
        close(found[k][valid], wanted, 1e-9)
        close(tail[k][valid], wanted, 1e-9)


def test_embeddings_are_those_of_transformers_whatever_parts_there_are() -> None:
    bench = tiny.bench("clip")
    parts: dict[str, Part] = {"x": Residual()}
    pack = pack_of(bench, [parts] * 2, [values_for(bench, parts, seed=i) for i in range(2)])
    rows = [np.array([4, 0, 9]), np.zeros(0, np.int64)]
    found = pack.embed(rows, chunk=2)
    assert [f.shape for f in found] == [(3, 16), (0, 16)]
    close(found[0], hand.image_embedding(bench.backbone, pixels(bench, rows[0])), 1e-10)


def test_there_is_no_embedding_of_rows_where_there_is_no_second_tower() -> None:
    bench = tiny.bench("vit")
    parts: dict[str, Part] = {"head": Head()}
    with pytest.raises(WeftError, match="no embedding of whole rows"):
        pack_of(bench, [parts], [values_for(bench, parts, seed=0)]).embed([np.arange(2)])
    with pytest.raises(UserError, match="no joint embedding of images and texts"):
        Residual().sites(tiny.backbone("vit"))


def test_a_hidden_layer_wider_than_the_embedding_can_not_be_asked_for() -> None:
    with pytest.raises(UserError, match="ratio ≥ 1"):
        Residual(0)


def test_both_matrices_start_as_a_linear_layer_does() -> None:
    b = tiny.backbone("clip")
    site = Residual().sites(b)[0]
    for role, bound in (("down", 1 / math.sqrt(16)), ("up", 1 / math.sqrt(4))):
        start = Residual().tensors(b, site)[role].draw(0, role)
        assert 0.85 * bound < start.abs().max() <= bound
        torch.manual_seed(0)
        drawn = torch.nn.Linear(start.shape[1], start.shape[0], bias=False).weight.detach()
        assert drawn.abs().max() <= bound  # PyTorch's own start lies on the same interval
        assert math.isclose(float(start.std()), bound / math.sqrt(3), rel_tol=0.25)


# tensors that sit nowhere ---------------------------------------------------------------------------------------------


def test_values_are_held_for_each_client_and_change_no_logit() -> None:
    bench = tiny.bench("bert")
    with_values: dict[str, Part] = {"table": Values((("logits", (3, 3)), ("seen", (3,)))), "head": Head()}
    values = [values_for(bench, with_values, seed=i) for i in range(2)]
    pack = pack_of(bench, [with_values] * 2, values)
    assert pack.tensors["table/values/logits"].shape == (2, 3, 3)
    assert pack.tensors["table/values/seen"].shape == (2, 3)
    heads = [{n: v for n, v in each.items() if n.startswith("head/")} for each in values]
    plain = pack_of(bench, [{"head": Head()}] * 2, heads)
    batch = batch_of(bench, INDEX[:2])
    assert torch.equal(pack(batch).logits, plain(batch).logits)
    assert torch.equal(pack.value(1, "table/values/logits"), values[1]["table/values/logits"])  # type: ignore[arg-type]


def test_values_start_at_zero_and_leave_the_cache_its_height() -> None:
    bench = tiny.bench("bert", prefix=True)
    parts: dict[str, Part] = {"table": Values((("logits", (3, 3)),)), "head": Head()}
    (site,) = parts["table"].sites(bench.backbone)
    assert not parts["table"].tensors(bench.backbone, site)["logits"].draw(0).any()
    assert pack_of(bench, [parts], [values_for(bench, parts, seed=0)]).cut() == 3
