"""Stacks of bottlenecks against models changed by hand, in packs of clients with fewer and more of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.stacked_bottleneck import StackedBottleneck
from weft.federation.layout import named
from weft.federation.scope import SHARED

ROLES = ("down", "down_bias", "up", "up_bias")


def change(w: Mapping[str, Tensor], u: int, h: Tensor) -> Tensor:
    """Of the u-th unit."""
    return F.linear(F.relu(F.linear(h, w["down"][u], w["down_bias"][u])), w["up"][u], w["up_bias"][u])


class Normed(nn.Module):
    """A norm that is asked anew after every unit."""

    def __init__(self, norm: nn.Module, w: Mapping[str, Tensor]):
        super().__init__()
        self.norm, self.w = norm, w

    def forward(self, s: Tensor) -> Tensor:
        for u in range(len(self.w["up"])):
            s = s + change(self.w, u, self.norm(s))
        return self.norm(s)


def with_stacks(model: Any, backbone: Any, values: Mapping[str, Any]) -> None:
    for site in backbone.bottlenecks:
        if f"x/{site.name}/up" not in values:
            continue
        w = {role: values[f"x/{site.name}/{role}"] for role in ROLES}
        module = model.get_submodule(site.name)
        if site.role == "ffn.norm":
            parent, leaf = site.name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, Normed(module, w))
            continue

        def after(_m: Any, _a: Any, out: Any, w: dict[str, Tensor] = w) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            for u in range(len(w["up"])):
                h = h + change(w, u, h)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        module.register_forward_hook(after)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2", "gpt2", "llama", "modernbert", "t5", "vit"])
def test_units_stand_one_after_another(kind: str) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"x": StackedBottleneck(3, 4), "head": Head()}
    values = values_for(bench, parts, seed=2)
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    with_stacks(model, bench.backbone, values)
    found = pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(found, logits_of(model, bench, INDEX[0]).to(found), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_one_unit_is_a_bottleneck(kind: str) -> None:
    bench = tiny.bench(kind)
    one: dict[str, Part] = {"x": StackedBottleneck(1, 8), "head": Head()}
    plain: dict[str, Part] = {"x": Bottleneck(4), "head": Head()}
    values = values_for(bench, one, seed=3)
    same = {n: v[0] if n.startswith("x/") else v for n, v in values.items()}  # type: ignore[index]
    batch = batch_of(bench, INDEX[:1])
    found, wanted = pack_of(bench, [one], [values])(batch), pack_of(bench, [plain], [same])(batch)
    assert torch.equal(found.logits, wanted.logits)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_clients_with_fewer_units_and_fewer_blocks_share_a_pack(kind: str) -> None:
    """Logits and gradients are those of each client alone; what pads a smaller stack has no gradient."""
    bench = tiny.bench(kind)
    stacks = [StackedBottleneck(2, 4, of=3, blocks=(2,)), StackedBottleneck(1, 4, of=3), StackedBottleneck(3, 4, blocks=(1, 2))]
    parts: list[dict[str, Part]] = [{"x": stack, "head": Head()} for stack in stacks]
    values = [values_for(bench, own, seed=s) for s, own in enumerate(parts)]
    pack = leaves(pack_of(bench, parts, values), "x")
    batch = batch_of(bench, INDEX)
    out = pack(batch)
    found = grads(pack, pack.loss(out, batch), "x")
    for k, one in enumerate(alone(bench, parts, values)):
        mine = batch_of(bench, INDEX[k : k + 1])
        one = leaves(one, "x")
        seen = one(mine)
        torch.testing.assert_close(out.logits[k], seen.logits[0], **CLOSE)
        wanted = grads(one, one.loss(seen, mine), "x")
        for name, slope in found.items():
            size = len(wanted[name][0]) if name in wanted else 0
            assert not bool(slope[k, size:].any())
            if size:
                torch.testing.assert_close(slope[k, :size], wanted[name][0], **CLOSE)
                assert wanted[name].norm() > 0


def test_a_smaller_stack_begins_as_the_leading_units_of_a_larger_one() -> None:
    bench = tiny.bench("bert")
    small, large = (
        {n: bench.draw(i, n) for n, i, _ in named({"x": (part, SHARED)}, bench.backbone)}
        for part in (StackedBottleneck(2, of=5, blocks=(1,)), StackedBottleneck(5))
    )
    assert {n.split("layer.")[1][0] for n in small} == {"1"}
    for name, value in small.items():
        assert torch.equal(value, large[name][:2])
        assert bool(value.any()) == (not name.endswith("bias"))


def test_a_unit_whose_up_projection_is_zero_changes_nothing() -> None:
    bench = tiny.bench("bert")
    parts: list[dict[str, Part]] = [{"x": StackedBottleneck(n, 4), "head": Head()} for n in (1, 3)]
    more = values_for(bench, parts[1], seed=4)
    more = {n: torch.cat([v[:1], torch.zeros_like(v[1:])]) if n.endswith(("/up", "/up_bias")) else v for n, v in more.items()}  # type: ignore[arg-type, index]
    less = {n: v[:1] if n.startswith("x/") else v for n, v in more.items()}  # type: ignore[index]
    batch = batch_of(bench, INDEX[:1])
    found, wanted = (pack_of(bench, [p], [v])(batch).logits for p, v in zip(parts[::-1], (more, less), strict=True))
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_numbers_of_a_unit_and_products_of_a_position() -> None:
    backbone, d, m = tiny.backbone("bert"), 32, 8
    part = StackedBottleneck(3, m)
    site = backbone.bottlenecks[0]
    assert sum(init.numel for init in part.tensors(backbone, site).values()) == 3 * (2 * m * d + m + d)
    assert sum(part.products(backbone, site).values()) == 3 * 2 * m * d
