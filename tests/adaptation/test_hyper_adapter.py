"""Adapters of a hypernetwork against the same in plain PyTorch, row by row, and what their weights are like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.hyper_adapter import HyperAdapter
from weft.adaptation.part import Part
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.pack import Pack

PART = HyperAdapter(3, rank=4, factor=5, embedding=6)
PARTS: dict[str, Part] = {"x": PART, "head": Head()}
KINDS = ("bert", "distilbert", "albert", "gpt2", "llama", "t5", "vit")


def gelu(h: Tensor) -> Tensor:
    return h * 0.5 * (1 + torch.erf(h / 2**0.5))


def roles(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n.rsplit("/", 1)[1]: v for n, v in values.items() if n.startswith("x/")}


def adapter(w: Mapping[str, Tensor], block: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """D [r, d] and U [d, r] as matrices of linear layers."""
    d, r, t = len(w["up_bias"]), len(w["down_bias"]), len(w["given_bias"])
    e = w["given_weight"] @ w["given"] + w["given_bias"] + w["block"][block] + w["context_weight"] @ u + w["context_bias"]
    rows = (w["first"] @ w["second"]).reshape(t, r * d) + w["added"]
    v = sum((e[j] * rows[j] / rows[j].square().sum().sqrt() for j in range(t)), torch.zeros(r * d, dtype=e.dtype))
    return v.reshape(d, r).T, v.reshape(r, d).T


def by_hand(bench: Bench, values: Mapping[str, Any], rows: list[int], pooled: bool) -> Tensor:
    """Logits [n, C] of rows of one client on a copy of the model; what is padded is cut off before means are taken."""
    b, model = bench.backbone, own_model(bench.backbone)
    set_head(model, b, values)
    w, inputs = roles(values), bench.table.collate(np.array(rows))
    mask = inputs.get("attention_mask")
    lengths = None if mask is None else mask.sum(1).tolist()
    for site in PART.sites(b)[1:]:

        def after(_m: Any, _a: Any, out: Tensor, block: int = site.block or 0) -> Tensor:
            each = out.reshape(len(rows), -1, out.shape[-1])
            means = [row[: None if lengths is None else lengths[i]].mean(0) for i, row in enumerate(each)]
            u = [m / m.square().sum().sqrt() for m in means]
            if pooled:
                u = [torch.stack(u).mean(0)] * len(u)
            made = []
            for row, one in zip(each, u, strict=True):
                down, up = adapter(w, block, one)
                made.append(row + gelu(row @ down.T + w["down_bias"]) @ up.T + w["up_bias"])
            return torch.stack(made).reshape(out.shape)

        model.get_submodule(site.name).register_forward_hook(after)
    found: Tensor = model(**inputs).logits
    return found


def packed(bench: Bench, part: HyperAdapter = PART) -> tuple[Pack, list[Mapping[str, Any]]]:
    parts: Mapping[str, Part] = {"x": part, "head": Head()}
    values: list[Mapping[str, Any]] = [values_for(bench, parts, seed=i) for i in range(3)]
    return pack_of(bench, [parts] * 3, values), values


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_the_adapter_that_is_made_of_it(kind: str) -> None:
    bench = tiny.bench(kind)
    pack, values = packed(bench)
    out = pack(batch_of(bench, INDEX)).logits
    for k, rows in enumerate(INDEX):
        own = [int(r) for r in rows if r >= 0]
        torch.testing.assert_close(out[k, : len(own)], by_hand(bench, values[k], own, False), **CLOSE)


def test_a_batchs_context_is_the_mean_over_a_clients_rows_where_a_gradient_is_asked_for() -> None:
    bench = tiny.bench("bert")
    pack, values = packed(bench, replace(PART, context="batch"))
    out = pack(batch_of(bench, INDEX)).logits
    with torch.no_grad():
        apart = pack(batch_of(bench, INDEX)).logits
    for k, rows in enumerate(INDEX):
        own = [int(r) for r in rows if r >= 0]
        torch.testing.assert_close(out[k, : len(own)], by_hand(bench, values[k], own, True), **CLOSE)
        torch.testing.assert_close(apart[k, : len(own)], by_hand(bench, values[k], own, False), **CLOSE)
    assert not torch.allclose(out[INDEX >= 0], apart[INDEX >= 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("context", ["row", "batch"])
def test_gradients_of_a_pack_are_those_of_its_clients_alone(context: Any) -> None:
    parts: list[Mapping[str, Part]] = [{"x": replace(PART, context=context), "head": Head()}] * 3
    for slopes in assert_as_alone(tiny.bench("bert"), parts).values():
        assert len(slopes) == 13
        assert all(bool(slope.any()) for slope in slopes.values())


def test_samples_in_another_order_have_their_logits_in_that_order() -> None:
    bench = tiny.bench("bert")
    for context in ("row", "batch"):
        pack, _ = packed(bench, replace(PART, context=context))  # type: ignore[arg-type]
        order = [2, 0, 1]
        out = pack(batch_of(bench, INDEX)).logits
        other = INDEX.copy()
        other[:, :3] = INDEX[:, order]
        torch.testing.assert_close(pack(batch_of(bench, other)).logits[:, :3], out[:, order], **CLOSE)


def made(seed: int = 0, **changes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of one client at one site, [1, …], and what some of its descriptions make, [1, 3, r·d]."""
    b = tiny.backbone("bert")
    w = {n: v.unsqueeze(0) for n, v in roles(values_for(tiny.bench(b), PARTS, seed=seed)).items()} | changes
    e = torch.randn(1, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return w | {"e": e}, PART.made(w, e)


def test_rows_of_the_generator_have_unit_length_and_what_they_make_is_no_longer_than_its_description_is_large() -> None:
    w, v = made()
    unit = PART.made(w, torch.eye(6, dtype=torch.float64).unsqueeze(0))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(1, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((v.norm(dim=-1) <= w["e"].abs().sum(-1) + 1e-12).all())


def test_without_an_added_row_the_size_of_a_factor_does_not_matter() -> None:
    none = torch.zeros(1, 4 * 32, dtype=torch.float64)
    w, v = made(added=none)
    for role in ("first", "second"):
        torch.testing.assert_close(PART.made(w | {role: 7 * w[role]}, w["e"]), v, rtol=0, atol=1e-12)
    w, v = made()
    assert not torch.allclose(PART.made(w | {"first": 7 * w["first"]}, w["e"]), v)


def test_a_generator_of_zeros_makes_zeros() -> None:
    _, v = made(first=torch.zeros(1, 24, 5, dtype=torch.float64), added=torch.zeros(1, 128, dtype=torch.float64))
    assert not v.any()


def test_one_vector_is_read_twice_and_the_second_matrix_is_not_the_first_one_turned() -> None:
    w = roles(values_for(tiny.bench("bert"), PARTS, seed=0))
    down, up = adapter(w, 1, torch.ones(32, dtype=torch.float64))
    assert torch.equal(down.T.flatten(), up.T.flatten())
    assert not torch.allclose(up, down.T)


def test_nothing_described_is_nothing_made() -> None:
    """Of e = 0 the model is the frozen one with b_2 added, as gelu(b_1) meets no second matrix."""
    bench = tiny.bench("bert")
    values = dict(values_for(bench, PARTS, seed=0))
    for role in ("given_weight", "given_bias", "block", "context_weight", "context_bias", "up_bias"):
        values[f"x/values/{role}"] = torch.zeros_like(values[f"x/values/{role}"])  # type: ignore[arg-type]
    pack, batch = pack_of(bench, [PARTS], [values]), batch_of(bench, INDEX[:1])
    assert torch.equal(pack(batch).logits, pack(batch, {}).logits)
    assert bool(pack.tensors["x/values/down_bias"].any())


def test_what_is_given_changes_what_is_made() -> None:
    bench = tiny.bench("bert")
    pack, _ = packed(bench)
    batch = batch_of(bench, INDEX)
    before = pack(batch).logits
    turned = pack.tensors["x/values/given"].clone()
    turned[1] = turned[1].flip(0)
    with pack.values({"x/values/given": turned}):
        after = pack(batch).logits
    assert torch.equal(before[[0, 2]][INDEX[[0, 2]] >= 0], after[[0, 2]][INDEX[[0, 2]] >= 0])
    assert not torch.allclose(before[1], after[1], rtol=0, atol=1e-6)


def test_it_starts_at_the_papers_values() -> None:
    b = tiny.backbone("bert")
    found = {role: init.draw(0, role) for role, init in HyperAdapter(5).tensors(b, PART.sites(b)[0]).items()}
    shapes = {role: tuple(v.shape) for role, v in found.items()}
    assert shapes == {
        "given": (5,),
        "first": (8 * 16, 32),
        "second": (32, 32),
        "added": (16 * 32,),
        "block": (3, 8),
        "given_weight": (8, 5),
        "given_bias": (8,),
        "context_weight": (8, 32),
        "context_bias": (8,),
        "down_bias": (16,),
        "up_bias": (32,),
    }
    assert float(found["first"].std()) == pytest.approx(0.01, rel=0.05)
    assert float(found["block"].std()) == pytest.approx(1.0, rel=0.4)
    assert torch.equal(found["given"], torch.full((5,), 0.2))
    for role, side in (("given_weight", 5), ("context_weight", 32), ("given_bias", 5), ("context_bias", 32)):
        assert 0.5 * side**-0.5 < float(found[role].abs().max()) <= side**-0.5
    assert not any(found[role].any() for role in ("added", "down_bias", "up_bias"))


def test_blocks_of_several_widths_are_refused() -> None:
    b = tiny.fresh("bert")
    b.linears = [replace(s, d_out=48) if (s.block, s.role) == (1, "ffn.out") else s for s in b.linears]
    with pytest.raises(UserError, match="are 32, 48 wide, and one network makes adapters of one width"):
        PART.sites(b)


@pytest.mark.parametrize("settings", [{"given": 0}, {"rank": 0}, {"context": "rows"}])
def test_sizes_and_words_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        HyperAdapter(**{"given": 3} | settings)
