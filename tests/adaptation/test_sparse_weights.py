"""Entries of frozen matrices, against matrices that are written out."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head
from weft.adaptation.head import Head
from weft.adaptation.sparse_weights import SparseProduct, SparseWeights
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.tensors.init import Init

PARTS: dict[str, Any] = {"x": SparseWeights(0.2, at="q,ffn.in"), "head": Head()}


def values_for(of: Bench, seed: int) -> dict[str, Tensor]:
    """Random values at the run's own places, and a random head."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, part in PARTS.items():
        for site in part.sites(of.backbone):
            for role, init in part.tensors(of.backbone, site).items():
                full = f"{name}/{site.called}/{role}"
                drawn = 0.3 * torch.randn(init.shape, generator=g)
                found[full] = of.draw(init, full) if role == "places" else drawn.to(of.dtype)
    return found


def written_out(values: dict[str, Tensor], site: str, shape: torch.Size) -> Tensor:
    found = torch.zeros(shape, dtype=torch.float64)
    for i, j, v in zip(*values[f"x/{site}/places"].long(), values[f"x/{site}/value"], strict=True):
        found[i, j] = v
    return found


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_in_a_pack_each_client_has_its_own_values_at_the_places_that_all_have(kind: str) -> None:
    bench = tiny.bench(kind)
    values = [values_for(bench, seed) for seed in range(3)]
    pack = leaves(pack_of(bench, [PARTS] * 3, values), "x/*/value")
    found = pack(batch_of(bench, INDEX)).logits
    slopes = grads(pack, found.square().sum((1, 2)), "x/*/value")
    for k in range(3):
        model = own_model(bench.backbone)
        set_head(model, bench.backbone, values[k])
        weights = {}
        for site in PARTS["x"].sites(bench.backbone):
            weight = model.get_submodule(site.name).weight
            delta = written_out(values[k], site.name, torch.Size((site.d_out, site.d_in)))
            weight.data += delta.T if kind == "gpt2" else delta  # its layers have their matrices the other way round
            weights[site.name] = weight.requires_grad_(True)
        rows = INDEX[k][INDEX[k] >= 0]
        wanted = logits_of(model, bench, rows)
        torch.testing.assert_close(found[k, : len(rows)].detach(), wanted.detach(), **CLOSE)
        if k == 2:
            continue  # it has a row of padding, which has logits too
        wanted.square().sum().backward()
        for name, weight in weights.items():
            slope = weight.grad.T if kind == "gpt2" else weight.grad  # type: ignore[union-attr]
            i, j = values[k][f"x/{name}/places"].long()
            torch.testing.assert_close(slopes[f"x/{name}/value"][k], slope[i, j], **CLOSE)  # type: ignore[index]


def test_one_value_for_all_clients_is_one_matrix() -> None:
    bench = tiny.bench("bert")
    one = values_for(bench, 0)
    shared, apart = (pack_of(bench, [PARTS] * 3, v) for v in ([one] * 3, [copy.deepcopy(one) for _ in range(3)]))
    name = next(n for n in shared.tensors if n.endswith("/value"))
    assert shared.tensors[name].stride(0) == 0 != apart.tensors[name].stride(0)
    batch = batch_of(bench, INDEX)
    torch.testing.assert_close(shared(batch).logits, apart(batch).logits, **CLOSE)


def test_a_client_that_lacks_the_part_shares_a_pack_with_those_who_have_it() -> None:
    bench = tiny.bench("bert")
    values = [values_for(bench, seed) for seed in range(3)]
    without = {"head": PARTS["head"]}
    bare = {n: v for n, v in values[0].items() if n.startswith("head/")}
    found = pack_of(bench, [without, PARTS, PARTS], [bare, *values[1:]])(batch_of(bench, INDEX)).logits
    alone = pack_of(bench, [without], [bare])(batch_of(bench, INDEX[:1])).logits
    whole = pack_of(bench, [PARTS] * 3, values)(batch_of(bench, INDEX)).logits
    torch.testing.assert_close(found[:1], alone, **CLOSE)
    torch.testing.assert_close(found[1:], whole[1:], **CLOSE)


def test_derivatives_of_the_product_are_right_to_the_second() -> None:
    g = torch.Generator().manual_seed(0)
    flat = torch.tensor([0, 3, 7, 11])
    for k in (1, 2):
        x = torch.randn(2, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
        value = torch.randn(k, 4, generator=g, dtype=torch.float64, requires_grad=True)
        dense = torch.zeros(k, 12, dtype=torch.float64)
        dense[:, flat] = value.detach()
        torch.testing.assert_close(SparseProduct.apply(x, value, flat, 3), x @ dense.view(k, 3, 4).mT)
        assert torch.autograd.gradcheck(SparseProduct.apply, (x, value, flat, 3))
        assert torch.autograd.gradgradcheck(SparseProduct.apply, (x, value, flat, 3))


def test_nothing_of_a_matrix_waits_for_the_backward_pass() -> None:
    x, value = torch.ones(2, 3, 50), torch.ones(2, 4, requires_grad=True)
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        SparseProduct.apply(x, value, torch.tensor([0, 3, 7, 11]), 60)
    assert sum(kept) == 2 * 3 * 50 + 2 * 4 + 4


@pytest.mark.parametrize(("density", "entries"), [(None, 5 * (32 + 64)), (0.1, 205), (1e-9, 1), (1.0, 2048)])
def test_how_many_entries_there_are(density: float | None, entries: int) -> None:
    backbone = tiny.backbone("bert")
    (site, *_) = backbone.sites("ffn.in")
    assert SparseWeights(density, 5).count(site) == entries
    assert SparseWeights(rank=1000).count(site) == 2048  # of a rank as high, all


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_a_density_that_is_none_is_refused(density: float) -> None:
    with pytest.raises(UserError, match="density"):
        SparseWeights(density)


@pytest.mark.parametrize("n", [1, 7, 60, 119, 120])
def test_places_are_different_entries_in_the_order_of_memory(n: int) -> None:
    init = Init((2, n), "places", of=(10, 12))
    rows, columns = init.draw(3, "a", "name").long()
    flat = (rows * 12 + columns).tolist()
    assert len(set(flat)) == n
    assert flat == sorted(flat)
    assert 0 <= flat[0] <= flat[-1] < 120
    assert torch.equal(init.draw(3, "a", "name").long(), torch.stack([rows, columns]))
    if n < 120:
        assert not torch.equal(init.draw(4, "a", "name"), init.draw(3, "a", "name"))
        assert not torch.equal(init.draw(3, "another"), init.draw(3, "a", "name"))


@pytest.mark.parametrize("n", [3, 17])
def test_every_entry_is_as_likely(n: int) -> None:
    draws, total = 2000, 20
    counts = torch.zeros(total)
    for seed in range(draws):
        rows, columns = Init((2, n), "places", of=(4, 5)).draw(seed, "x").long()
        counts[rows * 5 + columns] += 1
    share = n / total
    spread = (draws * share * (1 - share)) ** 0.5
    assert float((counts - draws * share).abs().max()) < 4 * spread


def test_places_of_a_large_matrix_are_exact_in_single_precision() -> None:
    wide = Init((2, 1000), "places", of=(3, 1 << 22))
    rows, columns = wide.draw(0, "x")
    assert int(columns.max()) > 1 << 21
    assert torch.equal(columns, columns.long().to(torch.float64).to(torch.float32))
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 1000
    assert bool((columns % 2 == 1).any())


def test_other_places_are_no_other_sizes_of_one_tensor() -> None:
    bench = tiny.bench("bert")
    other = {**PARTS, "x": replace(PARTS["x"], density=0.1)}
    values = values_for(bench, 0)
    smaller = {n: v[..., :102] if n.startswith("x/") else v for n, v in values.items()}
    with pytest.raises(UserError, match=r'the tensor "x/.*/places" has another form or start'):
        pack_of(bench, [PARTS, other], [values, smaller])
