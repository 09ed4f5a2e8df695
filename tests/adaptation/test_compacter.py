"""Compacter: adapters of Kronecker products against torch.kron, with the rule common to all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.compacter import Compacter
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.values import NOWHERE
from weft.errors import UserError
from weft.federation.layout import named
from weft.federation.scope import SHARED

PART = Compacter(n=4, rank=2, reduction=4)
PARTS: dict[str, Part] = {"x": PART, "head": Head()}
KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "vit")


def kron(w: Mapping[str, Tensor], side: str) -> Tensor:
    """The sum of products as the paper has it."""
    found = [torch.kron(a, s @ t) for a, s, t in zip(w["rule"], w[f"{side}_left"], w[f"{side}_right"], strict=True)]
    return torch.stack(found).sum(0)


def with_adapters(model: Any, values: Mapping[str, Any]) -> None:
    rule = values["x/values/rule"]
    for site in {n.split("/")[1] for n in values if n.startswith("x/")} - {"values"}:
        w = {n.rsplit("/", 1)[1]: v for n, v in values.items() if n.startswith(f"x/{site}/")} | {"rule": rule}
        down, up = kron(w, "down"), kron(w, "up")

        def after(_m: Any, _a: Any, out: Tensor, w: dict[str, Tensor] = w, down: Tensor = down, up: Tensor = up) -> Tensor:
            hidden = F.gelu(F.linear(out, down, w["down_bias"]), approximate="tanh")
            return out + F.linear(hidden, up, w["up_bias"])

        model.get_submodule(site).register_forward_hook(after)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_model_with_adapters_of_sums_of_kronecker_products(kind: str) -> None:
    bench = tiny.bench(kind)
    values = values_for(bench, PARTS, seed=4)
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    with_adapters(model, values)
    pack = pack_of(bench, [PARTS], [values])
    found = pack(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(found, logits_of(model, bench, INDEX[0]).to(found), **CLOSE)


def test_gradients_of_a_pack_are_those_of_its_clients_alone() -> None:
    for slopes in assert_as_alone(tiny.bench("bert"), [PARTS] * 3).values():
        assert slopes["x/values/rule"].shape == (4, 4, 4)
        assert all(slope.norm() > 0 for name, slope in slopes.items() if name.startswith("x/"))


@pytest.mark.parametrize(
    ("n", "rank", "reduction", "m"), [(4, 1, 16, 4), (2, 3, 4, 8), (8, 1, 2, 16), (1, 2, 8, 4), (4, 1, 64, 4), (1, 1, 64, 1)]
)
def test_its_numbers_are_n_cubed_for_all_and_n_factors_for_each(n: int, rank: int, reduction: int, m: int) -> None:
    backbone, d, places = tiny.backbone("bert"), 32, 6
    part = Compacter(n=n, rank=rank, reduction=reduction)
    found = sum(init.numel for _, init, _ in named({"x": (part, SHARED)}, backbone))
    assert found == n**3 + places * (2 * n * rank * (d // n + m // n) + m + d)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@pytest.mark.parametrize("placement", ["block", "ffn", "sublayers", "parallel"])
def test_it_is_a_bottleneck_with_the_matrices_that_products_make(kind: str, placement: Any, activation: Any) -> None:
    backbone = tiny.backbone(kind)
    part = replace(PART, placement=placement, activation=activation)
    plain = Bottleneck(PART.reduction, placement=placement, activation=activation)
    sites = part.sites(backbone)
    assert sites[1:] == plain.sites(backbone)
    g = torch.Generator().manual_seed(0)
    shapes = {n: i.shape for site in sites[:2] for n, i in part.tensors(backbone, site).items()}
    w = {n: torch.randn(2, *shape, generator=g, dtype=torch.float64) for n, shape in shapes.items()}
    x, out = torch.randn(2, 2, 5, 32, generator=g, dtype=torch.float64)
    module = backbone.module(sites[1].name)
    matrices = {side: torch.stack([kron({n: v[k] for n, v in w.items()}, side) for k in range(2)]) for side in ("down", "up")}
    usual = part.constants(sites[1])
    assert usual == plain.constants(sites[1])
    w["scaling"] = torch.tensor([usual["scaling"], 2.5]).double()
    wanted = plain.apply(module, w | matrices, x, out)
    torch.testing.assert_close(part.apply(module, w, x, out), wanted, **CLOSE)
    half = part.apply(module, {n: v.float() for n, v in w.items()}, x.bfloat16(), out.bfloat16())
    assert half.dtype == torch.bfloat16, "as the model computes, whatever its part is kept in"
    reckoned = part.products(backbone, sites[1])
    assert reckoned == {f"{side}_left": matrix[0].numel() for side, matrix in matrices.items()}
    assert part.products(backbone, NOWHERE) == {}


def test_it_starts_at_the_papers_values() -> None:
    backbone = tiny.backbone("bert")
    wide = tiny.backbone("bert", hidden_size=128)
    assert Compacter().tensors(wide, Compacter().sites(wide)[1])["down_bias"].shape == (128 // 16,)
    assert Compacter(std=0.5).tensors(backbone, NOWHERE)["rule"].scale == 0.5
    inits = {n.split("/", 1)[1]: i for n, i, _ in named({"x": (Compacter(), SHARED)}, backbone)}
    assert (inits["values/rule"].kind, inits["values/rule"].scale) == ("normal", 0.01)
    left = next(i for n, i in inits.items() if n.endswith("down_left"))
    assert (left.shape, left.kind, left.scale) == ((4, 1, 1), "normal", math.sqrt(2 / 2))
    right = next(i for n, i in inits.items() if n.endswith("down_right"))
    assert (right.shape, right.scale) == ((4, 1, 8), math.sqrt(2 / 9))
    assert all(i.kind == "zeros" for n, i in inits.items() if n.endswith("bias"))


def test_features_that_products_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="5 Kronecker products can't make up the 32 features"):
        Compacter(n=5).sites(tiny.backbone("bert"))
    assert PART.sites(tiny.backbone("bert"))[0] == NOWHERE
