"""ResNets of transformers: described by what they do, tuned by every kind of part that has a place in them, and cached.

Batch norms keep their statistics, so that no row is read with those of others.
"""

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

import tiny
from exporting import FAST, RUN_CLOSE, exported
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, grads, leaves, own_model, pack_of, set_head, values_for
from weft.adaptation.bias import Bias
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.norm import Norm
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.scale import Scale
from weft.adaptation.tokens import ImageTokens
from weft.adaptation.weights import Weights
from weft.backbones import maps
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.freeze import describe_model
from weft.backbones.prefix import PrefixCache
from weft.contract import Tune
from weft.engines.packing import estimate
from weft.errors import UserError
from weft.export import export_run
from weft.export import load as load_export
from weft.federation.bench import Bench
from weft.federation.method import Method
from weft.methods.full.diana import DIANA
from weft.methods.full.fedavg import FedAvg
from weft.methods.full.fedpaq import FedPAQ
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.selective.fedbf import FedBF
from weft.methods.selective.fedra import FedRA

DEEP: dict[str, Any] = {"layer_type": "bottleneck", "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "embedding_size": 8}
SIZES = (5, 4, 0, 3)


def backbone(name: str = "basic", precision: str = "float64") -> Backbone:
    return tiny.backbone("resnet", precision=precision, **({} if name == "basic" else DEEP))


def test_its_structure_is_found() -> None:
    b = backbone()
    assert b.blocks == [f"resnet.encoder.stages.{s}.layers.{i}" for s in (0, 1) for i in (0, 1)]
    assert b.maps == ((8, 8, 8), (8, 8, 8), (8, 8, 8), (12, 4, 4), (12, 4, 4))  # of pictures of 32, which the stem takes to 8
    assert (b.pools, b.d, b.map_starts, b.separate_blocks, b.more_tokens) == ("mean", 12, True, False, False)
    assert [(s.d_in, s.role) for s in b.bottlenecks] == [(8, "block"), (8, "block"), (12, "block"), (12, "block")]
    assert b.linears == b.outer == []
    assert len(b.norms) == len(b.convolutions) + 1 == 10  # with one projection in a shortcut
    assert [s.name for s in b.patches] == ["resnet.embedder.embedder.convolution"]
    assert [(s.name, s.d_in, s.d_out) for s in b.heads] == [("classifier.1", 12, 3)]
    deep = backbone("bottleneck")
    assert [m[0] for m in deep.maps] == [8, 16, 24, 24, 32]
    assert (len(deep.blocks), len(deep.norms)) == (4, 1 + 3 * 4 + 3)


def test_every_parameter_outside_the_head_is_of_a_convolution_or_a_norm() -> None:
    b = backbone()
    found = {s.name for s in (*b.norms, *b.convolutions, *b.patches, *b.heads)}
    assert {n.rpartition(".")[0] for n, _ in b.model.named_parameters()} == found


# parts ------------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Mapping[str, Part]] = {
    "norm": {"x": Norm()},
    "bias": {"x": Bias()},
    "ssf": {"x": Scale(shift=True)},
    "bottleneck": {"x": Bottleneck(4)},
}


def by_hand(b: Backbone, values: Mapping[str, Any]) -> Any:
    """A model that somebody has changed: parameters of norms in place, the others by hooks on maps."""
    model = own_model(b)
    set_head(model, b, values)
    for site in dict.fromkeys(n.split("/")[1] for n in values if n.startswith("x/")):
        w = {n.split("/")[2]: v for n, v in values.items() if n.startswith(f"x/{site}/")}
        module = model.get_submodule(site)
        if w.keys() <= {"weight", "bias"}:
            with torch.no_grad():
                for role, value in w.items():
                    module.get_parameter(role).copy_(value)
            continue

        def after(_m: nn.Module, _a: Any, out: Tensor, w: dict[str, Tensor] = w) -> Tensor:
            if "scale" in w:
                return w["scale"][:, None, None] * out + w["shift"][:, None, None]
            h = F.relu(F.conv2d(out, w["down"][..., None, None], w["down_bias"]))
            return out + F.conv2d(h, w["up"][..., None, None], w["up_bias"])

        module.register_forward_hook(after)
    return model


def logits_of(model: Any, bench: Bench, rows: np.ndarray) -> Tensor:
    found: Tensor = model(**bench.backbone.to_model(bench.table.collate(rows))).logits
    return found


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_parts_are_what_they_are_by_hand_on_maps(name: str, which: str) -> None:
    bench = tiny.bench(backbone(name))
    parts = {**PARTS[which], "head": Head()}
    values = values_for(bench, parts, seed=3)
    batch = batch_of(bench, INDEX[:1])
    pack = leaves(pack_of(bench, [parts], [values]), "*")
    got = pack(batch)
    model = by_hand(bench.backbone, values)
    wanted = logits_of(model, bench, INDEX[0])
    torch.testing.assert_close(got.logits[0], wanted, **CLOSE)
    if which == "norm":  # whose gradients the model itself has
        own = {f"x/{s.name}/{r}": model.get_parameter(f"{s.name}.{r}") for s in bench.backbone.norms for r in ("weight", "bias")}
        for p in own.values():
            p.requires_grad_()
        loss = F.cross_entropy(logits_of(model, bench, INDEX[0]), batch.labels.flatten())
        slopes = torch.autograd.grad(loss, list(own.values()))
        found = grads(pack, pack.loss(got, batch), "x")
        for n, slope in zip(own, slopes, strict=True):
            torch.testing.assert_close(found[n][0], slope, **CLOSE)


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_a_pack_is_its_clients_one_by_one(name: str, which: str) -> None:
    assert_as_alone(tiny.bench(backbone(name)), [{**PARTS[which], "head": Head()}] * 3)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_norms_at_their_start_change_no_bit(precision: str) -> None:
    bench = tiny.bench(backbone(precision=precision))
    head = values_for(bench, {"head": Head()}, seed=1)
    start = {
        f"norm/{s.name}/{role}": init.draw(0).to(bench.dtype)
        for s in bench.backbone.norms
        for role, init in Norm().tensors(bench.backbone, s).items()
    }
    batch = batch_of(bench, INDEX[:1])
    plain = pack_of(bench, [{"head": Head()}], [head])(batch).logits
    assert torch.equal(plain, pack_of(bench, [{"norm": Norm(), "head": Head()}], [start | head])(batch).logits)


REFUSED: dict[str, tuple[Any, str]] = {
    "LoRA": (lambda b: LoRA(2, 4.0).sites(b), r"has no linear layers in its blocks, but 10 convolutions, 10 norms and a head: "),
    "LoRA by a pattern": (lambda b: LoRA(2, 4.0, "re:.*conv.*").sites(b), r"has no linear layers in its blocks"),
    "LoRA by a name": (lambda b: LoRA(2, 4.0, "names:convolution").sites(b), r"has no linear layers in its blocks"),
    "IA³": (lambda b: Scale().sites(b), r"has no linear layers in its blocks"),
    "adapters in sublayers": (lambda b: Bottleneck(4, placement="ffn").sites(b), r"that an adapter could follow"),
    "tokens": (lambda b: ImageTokens(2).sites(b), r"has maps of convolutions and no tokens"),
    "a prefix": (lambda b: Prefix(2).sites(b), r"attention"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_place_is_refused_in_a_sentence(what: str) -> None:
    sites, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as refused:
        sites(backbone())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [(FedIT(), "no linear layers"), (FedRA(), "no linear layers|has maps of other sizes from block to block")],
    ids=["fedit", "fedra"],
)
def test_methods_that_need_linear_layers_or_blocks_to_leave_out_are_refused(method: Method, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny.federation(method, backbone(), sizes=SIZES, rounds=1).run()


def test_blocks_are_not_left_out_where_maps_change_their_sizes() -> None:
    bench = tiny.bench(backbone())
    pack = pack_of(bench, [{"head": Head()}], [values_for(bench, {"head": Head()}, seed=0)])
    with pytest.raises(UserError, match="has maps of other sizes from block to block, so that clients cannot hold subsets"):
        pack.hold(torch.ones(1, 4, dtype=torch.bool))


# the cache --------------------------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[dict[str, Part], int]] = {
    "head": ({}, 4),
    "the last block": ({"x": Weights("*.stages.1.layers.1.*")}, 3),
    "the second stage": ({"x": Weights("*.stages.1.*")}, 2),
    "the stem": ({"x": Weights("*.embedder.*")}, 0),
    "all norms": ({"x": Norm()}, 0),
}


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["memory", "file"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pass_from_the_cache_is_one_of_the_whole_model(place: str, memory: int) -> None:
    more, cut = PLACES[place]
    b = backbone()
    parts = {**more, "head": Head()}
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b, memory=memory))
    values = values_for(bench, parts, seed=2)
    batch = batch_of(bench, INDEX[2:])
    valid = INDEX[2] >= 0
    wanted = pack_of(bench, [parts], [values])(batch).logits[0][valid]
    ran: list[int] = []
    handles = [b.module(path).register_forward_hook(lambda _m, _a, _o, i=i: ran.append(i)) for i, path in enumerate(b.blocks)]
    try:
        for _ in range(2):
            pack = leaves(pack_of(cached, [parts], [values]), "*")
            ran.clear()
            out = pack(batch_of(cached, INDEX[2:]))
    finally:
        for handle in handles:
            handle.remove()
    assert pack.cut() == cut
    torch.testing.assert_close(out.logits[0][valid], wanted, **CLOSE)
    slopes = grads(pack, pack.loss(out, batch_of(cached, INDEX[2:])), "*")
    assert all(bool(s.any()) for n, s in slopes.items() if n.startswith("head"))


def test_of_a_model_whose_head_is_trained_the_mean_of_the_last_map_is_kept() -> None:
    b = backbone()
    cache = PrefixCache(b)
    bench = replace(tiny.bench(b), prefix=cache)
    pack = pack_of(bench, [{"head": Head()}], [values_for(bench, {"head": Head()}, seed=0)])
    pack(batch_of(bench, INDEX[:1]))
    assert {tuple(v.shape) for v in cache._rows[4].values() if isinstance(v, Tensor)} == {(12, 1, 1)}
    assert cache.used == 24 * 12 * 8  # of all rows, in float64


def described(model: Any) -> Backbone:
    return describe_model(model, None, (), processor=tiny.backbone("resnet").processor, name="odd")


def test_what_lies_between_blocks_is_found_and_then_no_pass_starts_in_the_middle() -> None:
    model = copy.deepcopy(backbone("bottleneck", "float32").model)
    assert described(model).map_starts
    projection = nn.Conv2d(24, 24, 1)  # between two stages: takes nothing else than what the second one makes

    def between(_m: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (projection(args[0]),)

    model.resnet.encoder.stages[2].register_forward_pre_hook(between)
    odd = described(model)
    assert (odd.map_starts, odd.pools, len(odd.maps)) == (False, "mean", 5)


@pytest.mark.parametrize(("kind", "accepted"), [("regnet", True), ("convnext", False)])
def test_other_networks_are_described_if_their_norms_are_batch_norms(kind: str, accepted: bool) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    shape: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 1], "num_labels": 3}
    more = {"embedding_size": 8, "groups_width": 4} if kind == "regnet" else {}
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **shape, **more)).eval()
    if not accepted:
        with pytest.raises(UserError, match=r"neither hidden states .* nor maps of convolutions with batch norms: choose"):
            described(model)
        return
    b = described(model)
    assert (len(b.blocks), len(b.maps), b.map_starts, b.pools, b.linears) == (7, 8, True, "mean", [])


def test_a_head_that_sees_more_than_the_mean_is_told() -> None:
    model = copy.deepcopy(backbone("basic", "float32").model)
    model.resnet.pooler = nn.AdaptiveMaxPool2d((1, 1))
    b = described(model)
    assert (b.pools, b.map_starts) == ("all", True)
    bench = tiny.bench(b)
    values = values_for(bench, {"head": Head()}, seed=0)
    whole, kept = (pack_of(one, [{"head": Head()}], [values]) for one in (bench, replace(bench, prefix=PrefixCache(b))))
    batch = batch_of(bench, INDEX[:1])
    torch.testing.assert_close(kept(batch).logits, whole(batch).logits, **RUN_CLOSE)


def test_hidden_states_in_four_axes_that_no_convolution_reads_are_no_maps() -> None:
    entered = {"a.0": torch.zeros(7, 8, 4, 4)}
    assert maps.shapes(["a.0"], entered, entered, {"a.0.conv": (7, 8, 4, 4)}) == ((8, 4, 4), (8, 4, 4))
    assert maps.shapes(["a.0"], entered, entered, {"b.conv": (7, 8, 4, 4)}) == ()
    assert maps.shapes(["a.0"], entered, entered, {"a.0.conv": (7, 4, 4, 8)}) == ()


def test_memory_of_a_pass_grows_with_its_maps() -> None:
    bench = tiny.bench(backbone())
    method = FedAvg(tune=Tune("norm"), batch=4)
    assert estimate(bench, method, 100, 30).kept > estimate(bench, method, 100, 15).kept > 0


# runs -------------------------------------------------------------------------------------------------------------------

METHODS: dict[str, Method] = {
    "weights": FedAvg(batch=4, epochs=1.0, optim=FAST.but(lr=0.01)),
    "head": FedAvg(tune=Tune("head"), batch=4, optim=FAST),
    "norm": FedAvg(tune=Tune("norm"), batch=4, optim=FAST),
    "ssf": FedAvg(tune=Tune("ssf"), batch=4, optim=FAST),
    "bottlenecks": FedAvg(tune=Tune("bottleneck", reduction=4), batch=4, optim=FAST),
    "fedbf": FedBF(batch=4, optim=FAST),
    "fedpaq": FedPAQ(tune=Tune("norm"), batch=4, optim=FAST),
    "diana": DIANA(tune=Tune("bias"), batch=4, optim=FAST),
}


@pytest.mark.parametrize("slug", METHODS)
def test_a_round_is_trained_exported_and_loaded_again_and_the_backbone_stays(slug: str, tmp_path: Path) -> None:
    method, b = METHODS[slug], backbone(precision="float32")
    frozen = frozen_fingerprint(b)  # with the statistics of batch norms
    run = tiny.federation(method, b, sizes=SIZES, rounds=1)
    before = run.global_logits()
    after = run.run().global_logits()
    assert bool(torch.isfinite(after).all())
    assert not torch.allclose(after, before, **RUN_CLOSE)
    assert frozen_fingerprint(b) == frozen
    folder = tmp_path / "m"
    folder.mkdir()
    assert exported(run, folder).kind == "weft"
    rows = tiny.states(SIZES, reads="images")[0]
    torch.testing.assert_close(load_export(folder, device="cpu", precision="float32").logits_of(rows), after, **RUN_CLOSE)


@pytest.mark.parametrize("kind", ["weights", "norm", "head"])
def test_what_stands_for_parameters_leaves_as_a_plain_model(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    run = tiny.federation(METHODS[kind], backbone(precision="float32"), sizes=SIZES, rounds=1).run()
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = model(**run.bench.table.collate(np.arange(len(run.bench.table)))).logits
    torch.testing.assert_close(found, run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("slug", ["norm", "ssf", "head", "fedbf"])
def test_a_run_in_packs_is_one_of_clients_one_by_one(slug: str) -> None:
    one, other = (tiny.federation(METHODS[slug], backbone(), sizes=SIZES, rounds=2, pack=k).run().server.shared for k in (1, 3))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9)
