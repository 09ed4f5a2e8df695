"""Batch norms by the statistics of a client's own rows, against PyTorch's own in training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cifar_resnets
import tiny
from weaving import alone, batch_of, grads, leaves, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.norm import Norm
from weft.adaptation.norm_statistics import Moments, Statistics, moments, pooled
from weft.adaptation.part import Part
from weft.adaptation.weights import Weights
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.errors import UserError
from weft.federation import batch_statistics
from weft.federation.batch import Batch
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.full.fedavg import FedAvg

EXACT = {"rtol": 0.0, "atol": 1e-12}
INDEX = np.array([[0, 1, 2, 3, 4], [6, 7, 8, -1, -1], [12, 13, -1, -1, -1]])  # unequal rows, and padding
NORMS: dict[str, Part] = {"norm": Norm(), "head": Head(), "statistics": Statistics()}
WHOLE: dict[str, Part] = {"weights": Weights(), "head": Head(), "statistics": Statistics()}


def backbone() -> Backbone:
    return tiny.backbone("resnet", precision="float64")


def training(bench: Bench, index: np.ndarray) -> Batch:
    """The batch as one of a step of training, with a key for each row."""
    return replace(batch_of(bench, index), keys=torch.arange(index.size).reshape(index.shape))


def values_of(bench: Bench, parts: Mapping[str, Part], seed: int) -> dict[str, Any]:
    found = values_for(bench, parts, seed, scale=0.1)
    return {n: v.abs() if n.endswith("/var") else v for n, v in found.items()}


def plain(b: Backbone, values: Mapping[str, Any]) -> Any:
    """The model with these values, by PyTorch alone."""
    model = own_model(b)
    set_head(model, b, values)
    with torch.no_grad():
        for name, value in values.items():
            part, site, role = name.split("/")
            module = model.get_submodule(site)
            if part == "statistics":
                getattr(module, f"running_{role}").copy_(value)
            elif part != "head":
                module.get_parameter(role).copy_(value)
    return model.train().requires_grad_(True)


def logits(model: Any, bench: Bench, rows: np.ndarray) -> Tensor:
    found: Tensor = model(**bench.backbone.to_model(bench.table.collate(rows))).logits
    return found


def settled(pack: Pack, batch: Batch) -> tuple[Any, list[Any]]:
    """A pass of training, and what the norms hold after it."""
    with pack.weave.noting() as noted:
        out = pack(batch)
    batch_statistics.settle(pack, noted)
    return out, noted


def test_each_client_of_a_pack_is_normalised_by_its_own_rows_as_by_torch_and_padding_counts_for_nobody() -> None:
    bench = tiny.bench(backbone())
    values = [values_of(bench, NORMS, seed=i) for i in range(3)]
    pack = leaves(pack_of(bench, [NORMS] * 3, values), "norm", "head")
    batch = training(bench, INDEX)
    out, _ = settled(pack, batch)
    slopes = grads(pack, pack.loss(out, batch), "norm", "head")
    for i, own in enumerate(values):
        model, rows = plain(bench.backbone, own), INDEX[i][INDEX[i] >= 0]
        wanted = logits(model, bench, rows)
        torch.testing.assert_close(out.logits[i, : len(rows)], wanted, **EXACT)
        F.cross_entropy(wanted, batch.labels[i, : len(rows)]).backward()
        for name, slope in slopes.items():
            _, site, role = name.split("/")
            torch.testing.assert_close(slope[i], model.get_parameter(f"{site}.{role}").grad, **EXACT)
        for name, value in pack.params("statistics").items():
            _, site, role = name.split("/")
            running = model.get_buffer(f"{site}.running_{role}")
            torch.testing.assert_close(value[i], running, **EXACT)
            assert not torch.allclose(running, own[name], **EXACT)  # it has moved


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_all_weights_are_those_of_torch(recompute: bool) -> None:
    bench = replace(tiny.bench(backbone()), recompute=recompute)
    values = values_of(bench, WHOLE, seed=4)
    pack = leaves(pack_of(bench, [WHOLE], [values]), "weights", "head")
    batch = training(bench, INDEX[:1])
    out, noted = settled(pack, batch)
    assert len(noted) == len(bench.backbone.norms)
    slopes = grads(pack, pack.loss(out, batch), "weights", "head")
    assert len(noted) == len(bench.backbone.norms)  # a block that is computed once more has seen its rows already
    model = plain(bench.backbone, values)
    F.cross_entropy(logits(model, bench, INDEX[0]), batch.labels[0]).backward()
    for name, slope in slopes.items():
        _, site, role = name.split("/")
        torch.testing.assert_close(slope[0], model.get_parameter(f"{site}.{role}").grad, **EXACT)
    for name, value in pack.params("statistics").items():
        _, site, role = name.split("/")
        torch.testing.assert_close(value[0], model.get_buffer(f"{site}.running_{role}"), **EXACT)


def test_the_resnet_of_cifar_trains_as_by_torch(tmp_path: Path) -> None:
    where = cifar_resnets.saved(tmp_path / "resnet.npz", cifar_resnets.arrays(depth=1, classes=3))
    b = load(where, classes=tiny.names(3), device="cpu", precision="float64")
    bench = tiny.bench(b)
    values = values_of(bench, WHOLE, seed=4)
    pack, batch = leaves(pack_of(bench, [WHOLE], [values]), "weights", "head"), training(bench, INDEX[:1])
    out, _ = settled(pack, batch)
    model = plain(b, values)
    wanted = logits(model, bench, INDEX[0])
    torch.testing.assert_close(out.logits[0], wanted, **EXACT)
    slopes = grads(pack, pack.loss(out, batch), "weights")
    F.cross_entropy(wanted, batch.labels[0]).backward()
    for name, slope in slopes.items():
        torch.testing.assert_close(slope[0], model.get_parameter(name.split("/", 1)[1].replace("/", ".")).grad, **EXACT)


def test_passes_that_are_not_of_training_go_by_what_is_held() -> None:
    bench = tiny.bench(backbone())
    values = [values_of(bench, NORMS, seed=i) for i in range(3)]
    pack = pack_of(bench, [NORMS] * 3, values)
    before = dict(pack.tensors)
    teacher, looked = training(bench, INDEX), batch_of(bench, INDEX)
    with torch.no_grad():
        out, noted = settled(pack, teacher)  # a pass without a gradient is none of training
    again = pack(looked)
    for i, own in enumerate(values):
        rows = INDEX[i][INDEX[i] >= 0]
        wanted = logits(plain(bench.backbone, own).eval(), bench, rows)
        for found in (out, again):
            torch.testing.assert_close(found.logits[i, : len(rows)], wanted, **EXACT)
    assert noted == []
    assert all(pack.tensors[n] is v for n, v in before.items())


def test_at_the_checkpoints_statistics_a_prediction_is_that_of_the_frozen_model() -> None:
    bench = tiny.bench(backbone())
    head = values_for(bench, {"head": Head()}, seed=0)
    batch = batch_of(bench, INDEX[:1])
    wanted = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    for kind in ("averaged", "static"):
        part = Statistics(kind)  # type: ignore[arg-type]
        start = {
            f"statistics/{s.name}/{role}": init.draw(0).to(bench.dtype)
            for s in part.sites(bench.backbone)
            for role, init in part.tensors(bench.backbone, s).items()
        }
        found = pack_of(bench, [{"head": Head(), "statistics": part}], [head | start])(batch).logits
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # start values are in single precision


def test_no_optimizer_holds_them() -> None:
    bench = tiny.bench(backbone())
    pack = pack_of(bench, [NORMS], [values_of(bench, NORMS, seed=0)])
    held = pack.optimizer("*", settings=FedAvg().optim).params
    assert held
    assert not any(n.startswith("statistics/") for n in held)


def test_a_pass_starts_below_the_lowest_batch_norm_although_the_head_alone_is_trained() -> None:
    b = backbone()
    bench, cached = tiny.bench(b), replace(tiny.bench(b), prefix=PrefixCache(b))
    head: dict[str, Part] = {"head": Head()}
    parts: dict[str, Part] = {**head, "statistics": Statistics()}
    values = values_of(bench, parts, seed=1)
    frozen = pack_of(cached, [head], [{n: v for n, v in values.items() if n.startswith("head")}])
    assert frozen.cut() == len(b.blocks)
    frozen(batch_of(cached, INDEX[:1]))  # fills the cache with what frozen norms make of these rows
    found, wanted = (pack_of(one, [parts], [values]) for one in (cached, bench))
    assert found.cut() == 0
    batch = training(bench, INDEX[:1])
    torch.testing.assert_close(found(batch).logits, wanted(batch).logits, **EXACT)
    torch.testing.assert_close(wanted(batch).logits[0], logits(plain(b, values), bench, INDEX[0]), **EXACT)


def test_static_statistics_are_those_of_all_values_that_a_norm_has_seen() -> None:
    b, parts = backbone(), {**NORMS, "statistics": Statistics("static")}
    bench = tiny.bench(b)
    values = [values_of(bench, parts, seed=i) for i in range(3)]
    together = pack_of(bench, [parts] * 3, values)
    for k, n in enumerate((6, 4, 0)):
        together.clients[k].data = replace(together.clients[k].data, train=together.clients[k].data.train[:n])
    untouched = together.tensors["statistics/resnet.embedder.embedder.normalization/mean"][2]
    batch_statistics.measure(together, FedAvg().forward, 4)
    for k, own in enumerate(values[:2]):
        (single,) = alone(bench, [parts], [own])
        single.clients = [together.clients[k]]
        running = {n: v for n, v in own.items() if not n.startswith("statistics")}
        model, seen = plain(b, running), dict[str, list[Tensor]]()
        for site in b.norms:
            keep = seen.setdefault(site.name, [])
            model.get_submodule(site.name).register_forward_pre_hook(lambda _m, args, keep=keep: keep.append(args[0].detach()))
        for batch in single.batches(1.0, None, 4, "statistics"):
            logits(model, bench, batch.index[0])
        for name, some in seen.items():
            every = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in some])
            for role, wanted in (("mean", every.mean(0)), ("square", every.square().mean(0))):
                torch.testing.assert_close(together.tensors[f"statistics/{name}/{role}"][k], wanted, **EXACT)
    assert torch.equal(together.tensors["statistics/resnet.embedder.embedder.normalization/mean"][2], untouched)


def test_moments_are_pooled_by_counts() -> None:
    x = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some, rest = (moments(part.flatten(0, 1), 2) for part in (x[:, :2], x[:, 2:]))
    found, wanted = pooled(some, rest), moments(x.flatten(0, 1), 2)
    nothing = Moments(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
    with_nothing = pooled(nothing, wanted)
    for name in ("mean", "var", "count"):
        value, other, same = (getattr(one, name) for one in (found, wanted, with_nothing))
        torch.testing.assert_close(value, other, check_dtype=False, **EXACT)
        torch.testing.assert_close(same, other, check_dtype=False, **EXACT)


def refused(what: str) -> Backbone:
    if what == "none":
        return tiny.backbone("bert")
    b = copy.copy(backbone())
    b.model = copy.deepcopy(b.model)
    norm = b.model.get_submodule(b.norms[0].name)
    if what == "a cumulative average":
        norm.momentum = None
    if what == "a norm of its own":

        class Activated(nn.BatchNorm2d):
            def forward(self, input: Tensor) -> Tensor:
                return F.relu(super().forward(input))

        norm.__class__ = Activated
    b.__post_init__()
    return b


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("none", "has no batch norms"),
        ("a cumulative average", "is no plain batch norm"),
        ("a norm of its own", "is no plain batch norm"),
    ],
)
def test_what_has_none_is_refused_in_a_sentence(what: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as e:
        Statistics().sites(refused(what))
    assert "\n" not in str(e.value)
