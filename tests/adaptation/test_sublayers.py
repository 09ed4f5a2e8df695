"""Adapters inside the sublayers of a block are those of a model whose linear layers are followed by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.errors import UserError

ROLES = {"ffn": {"ffn.out"}, "sublayers": {"o", "ffn.out"}}


class Followed(nn.Module):
    """f + A(f) of a layer's output f."""

    def __init__(self, layer: nn.Module, values: Mapping[str, Any], site: str, activation: str):
        super().__init__()
        self.layer, self.gelu = layer, activation == "gelu_new"
        self.weight = layer.weight  # a T5 looks at its type
        self.w = {role: values[f"x/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        h = out @ self.w["down"].T + self.w["down_bias"]
        if self.gelu:  # D. Hendrycks & K. Gimpel, 2016
            h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        else:
            h = F.relu(h)
        return out + h @ self.w["up"].T + self.w["up_bias"]


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@pytest.mark.parametrize("placement", ["ffn", "sublayers"])
@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "albert", "deberta-v2", "gpt2", "llama", "phi", "bloom", "t5", "vit"]
)
def test_an_adapter_follows_the_last_layer_of_a_sublayer_before_the_residual_stream(
    kind: str, placement: str, activation: str
) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts: dict[str, Part] = {"x": Bottleneck(4, 0.02, placement, activation), "head": Head()}
    values = values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    sites = parts["x"].sites(b)
    found = [(s.block, s.role) for s in sites]
    assert sorted(found) == sorted((i, role) for i in range(len(b.blocks)) for role in ROLES[placement])
    for site in sites:
        parent, leaf = site.name.rsplit(".", 1)
        layer = model.get_submodule(site.name)
        setattr(model.get_submodule(parent), leaf, Followed(layer, values, site.name, activation))
    got = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_each_client_of_a_pack_has_its_own(kind: str) -> None:
    parts: list[dict[str, Part]] = [{"x": Bottleneck(r, 0.02, "sublayers"), "head": Head()} for r in (4, 8, 4)]
    assert_as_alone(tiny.bench(kind), parts)


def test_a_decoder_that_looks_at_an_encoder_has_one_in_that_sublayer_too() -> None:
    b = tiny.backbone("t5", task="generation", checkpoint="pair")
    found = [s.block for s in Bottleneck(placement="sublayers").sites(b)]
    assert [found.count(i) for i in range(6)] == [2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("placement", ["block", "ffn", "sublayers", "parallel"])
def test_with_no_spread_of_the_second_matrix_the_model_begins_as_the_frozen_one(placement: str) -> None:
    bench = tiny.bench("bert")
    parts: dict[str, Part] = {"x": Bottleneck(4, 0.02, placement, up_std=0.0), "head": Head()}
    values = values_for(bench, parts, seed=1)
    for site in parts["x"].sites(bench.backbone):
        for role, init in parts["x"].tensors(bench.backbone, site).items():
            values[f"x/{site.name}/{role}"] = init.draw(0, site.name, role).double()
    assert any(v.any() for n, v in values.items() if n.endswith("/down"))  # type: ignore[union-attr]
    pack, batch = pack_of(bench, [parts], [values]), batch_of(bench, INDEX[:1])
    torch.testing.assert_close(pack(batch).logits, pack(batch, {}).logits, **CLOSE)


def test_a_backbone_without_such_a_layer_in_every_block_is_refused() -> None:
    b = tiny.fresh("bert")
    b.linears = [s for s in b.linears if (s.block, s.role) != (1, "ffn.out")]
    for placement in ("ffn", "sublayers"):
        with pytest.raises(UserError, match=r'block 1 of backbone ".*" has no layer "ffn.out" that an adapter could follow'):
            Bottleneck(placement=placement).sites(b)


def test_an_adapter_is_at_least_one_feature_wide() -> None:
    b = tiny.backbone("bert")
    made = Bottleneck(64)
    assert made.tensors(b, made.sites(b)[0])["down"].shape == (1, 32)


def test_an_unknown_placement_or_activation_is_refused() -> None:
    with pytest.raises(UserError, match='unknown placement "sublayer": use block, ffn, sublayers, parallel'):
        Bottleneck(placement="sublayer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match='unknown activation "gelu": use relu, gelu_new'):
        Bottleneck(activation="gelu")  # type: ignore[arg-type]
