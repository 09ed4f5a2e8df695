"""Adapters beside a feed-forward: they read what goes into it, and add to what comes out of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.compacter import Compacter
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.describe import feed_forward_entry
from weft.backbones.model_site import Site
from weft.backbones.prefix import PrefixCache
from weft.errors import UserError
from weft.methods import AdaFedSelecKD, FedAvg, FedPETuning, settings
from weft.testing import laws

PART = Bottleneck(4, placement="parallel", scaling=1.7)
PARTS: dict[str, Part] = {"x": PART, "head": Head()}

CONTAINERS = {"gpt2": "mlp", "llama": "mlp", "bloom": "mlp", "vit": "mlp", "modernbert": "mlp", "distilbert": "ffn"}
"""The module that is the whole feed-forward, and nothing else, where transformers has one."""

Adapter = Callable[[Tensor], Tensor]


def adapter(values: Mapping[str, Any], site: str, scaling: float | None, act: Callable[[Tensor], Tensor] = F.relu) -> Adapter:
    """s (U σ(D x + b) + b'); the scaling is among the values if it is None."""
    w = {role: values[f"x/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}
    s = values[f"x/{site}/scaling"] if scaling is None else scaling
    return lambda x: s * F.linear(act(F.linear(x, w["down"], w["down_bias"])), w["up"], w["up_bias"])


def put_beside(block: nn.Module, kind: str, beside: Adapter) -> None:
    """f(x) + s·A(x) in the place of f(x), in one block of transformers' own, by what its code calls the feed-forward."""

    def wrapped(ffn: Adapter) -> Adapter:
        return lambda x: ffn(x) + beside(x)

    if kind in CONTAINERS:
        inner = getattr(block, CONTAINERS[kind])
        if kind == "bloom":  # adds the residual stream itself
            ffn = inner.forward
            inner.forward = lambda x, residual: ffn(x, residual) + beside(x)
        else:
            inner.forward = wrapped(inner.forward)
    elif kind == "albert":
        block.ff_chunk = wrapped(block.ff_chunk)  # type: ignore[method-assign]
    elif kind == "t5":
        inner = next(m for m in block.modules() if type(m).__name__ == "T5DenseActDense")
        inner.forward = wrapped(inner.forward)
    elif kind in ("phi", "opt"):  # Phi has a container, OPT none: its layers stand in the block
        first, last, read = (block.mlp.fc1, block.mlp.fc2, []) if kind == "phi" else (block.fc1, block.fc2, [])
        first.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
        last.register_forward_hook(lambda _m, _args, out: out + beside(read.pop()))
    else:  # BERT and its kin: dense, residual stream and norm are one module, which is given what the feed-forward has read

        def output(self: Any, hidden: Tensor, read: Tensor) -> Tensor:
            return self.LayerNorm(self.dense(hidden) + beside(read) + read)

        block.output.forward = types.MethodType(output, block.output)


def by_hand(b: Backbone, kind: str, values: Mapping[str, Any], scaling: float | None, act: Any = F.relu) -> Any:
    """A model of its own, with a head and adapters of these values."""
    model = own_model(b)
    set_head(model, b, values)
    for site in PART.sites(b):
        assert site.block is not None
        put_beside(model.get_submodule(b.blocks[site.block]), kind, adapter(values, site.name, scaling, act))
    return model


KINDS = [
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "llama",
    "phi",
    "opt",
    "bloom",
    "t5",
    "vit",
]


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_what_goes_into_a_feed_forward_and_adds_to_what_comes_out(kind: str) -> None:
    bench = tiny.bench(kind)
    values = values_for(bench, PARTS, seed=2)
    assert [s.block for s in PART.sites(bench.backbone)] == list(range(len(bench.backbone.blocks)))
    got = pack_of(bench, [PARTS], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(by_hand(bench.backbone, kind, values, 1.7), bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "t5"])
@pytest.mark.parametrize(
    "part",
    [PART, replace(PART, scaling="learned"), replace(PART, scaling=None, activation="gelu_new")],
    ids=["fixed", "learned", "usual"],
)
def test_gradients_are_those_of_plain_pytorch_and_of_nothing_but_the_adapters(kind: str, part: Bottleneck) -> None:
    bench = tiny.bench(kind)
    b, parts = bench.backbone, {"x": part, "head": Head()}
    before = frozen_fingerprint(b)
    values = values_for(bench, parts, seed=3)
    mine = {n: v.clone().requires_grad_(n.startswith("x/")) for n, v in values.items()}  # type: ignore[union-attr]
    scaling = {"learned": None, None: 4.0}.get(part.scaling, part.scaling)  # type: ignore[arg-type]

    def gelu(h: Tensor) -> Tensor:
        return 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))

    model = by_hand(b, kind, mine, scaling, gelu if part.activation == "gelu_new" else F.relu)  # type: ignore[arg-type]
    labels = torch.from_numpy(bench.table.labels[INDEX[0]])
    trained = {n: v for n, v in mine.items() if n.startswith("x/")}
    wanted = torch.autograd.grad(F.cross_entropy(logits_of(model, bench, INDEX[0]), labels), list(trained.values()))
    pack, batch = leaves(pack_of(bench, [parts], [values]), "x"), batch_of(bench, INDEX[:1])
    found = grads(pack, pack.loss(pack(batch), batch), "x")
    assert found.keys() == trained.keys()
    assert any(n.endswith("/scaling") for n in found) == (part.scaling == "learned")
    for name, slope in zip(trained, wanted, strict=True):
        torch.testing.assert_close(found[name][0], slope, **CLOSE)
        assert slope.any()
    assert not any(p.requires_grad or p.grad is not None for p in b.model.parameters())
    assert (frozen_fingerprint(b), list(tiny.hooks(b.model))) == (before, [])


@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "t5", "deberta-v2", "albert"])
def test_each_client_of_a_pack_has_its_own_of_its_own_width_and_scaling(kind: str) -> None:
    widths: list[tuple[int, float]] = [(4, 1.0), (8, 4.0), (4, 0.5)]
    parts: list[dict[str, Part]] = [{"x": Bottleneck(r, placement="parallel", scaling=s), "head": Head()} for r, s in widths]
    assert_as_alone(tiny.bench(kind), parts)


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_beside_it_other_parts_read_what_they_would_without_it(kind: str) -> None:
    """LoRA at both ends of the feed-forward, and two adapters there of which one has a weight."""
    bench = tiny.bench(kind)
    b, lora = bench.backbone, LoRA(2, 4.0, "ffn")
    parts: dict[str, Part] = {"lora": lora, "y": Bottleneck(8, placement="parallel")} | PARTS
    values = values_for(bench, parts, seed=5)
    model = by_hand(b, kind, values, 1.7)
    for site in lora.sites(b):
        with torch.no_grad():
            model.get_submodule(site.name).weight += 2 * values[f"lora/{site.name}/B"] @ values[f"lora/{site.name}/A"]
    second = {n.replace("y/", "x/", 1): v for n, v in values.items() if n.startswith("y/")}
    for site in PART.sites(b):
        assert site.block is not None
        put_beside(model.get_submodule(b.blocks[site.block]), kind, adapter(second, site.name, 0.5 * 4.0))
    pack, batch = pack_of(bench, [parts], [values]), batch_of(bench, INDEX[:1])
    got = pack(batch, {"lora": 1.0, "x": 1.0, "y": 0.5, "head": 1.0}).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)
    without = pack_of(bench, [{"lora": lora, "head": Head()}], [{n: v for n, v in values.items() if n[0] not in "xy"}])
    assert torch.equal(pack(batch, {"lora": 1.0, "head": 1.0}).logits, without(batch).logits)


class Upper(Bottleneck):
    """In the last block alone."""

    def sites(self, backbone: Backbone) -> list[Site]:
        return super().sites(backbone)[-1:]


@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "gpt2"])
def test_a_pass_that_starts_at_a_later_block_is_the_whole_one(kind: str) -> None:
    bench = tiny.bench(kind)
    b, parts = bench.backbone, {"x": Upper(4, placement="parallel"), "head": Head()}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    found = []
    for prefix in (None, PrefixCache(b)):
        pack = leaves(pack_of(replace(bench, prefix=prefix), [parts] * 3, values), "*")
        batch = batch_of(pack.bench, INDEX)
        out = pack(batch)
        found.append((out.logits[INDEX >= 0], grads(pack, pack.loss(out, batch), "*")))
        assert pack.cut() == (0 if prefix is None else 2)
    (logits, slopes), (again, others) = found
    torch.testing.assert_close(again, logits, **CLOSE)
    for name, slope in slopes.items():
        torch.testing.assert_close(others[name], slope, **CLOSE)


def test_what_entered_a_feed_forward_is_let_go_of_behind_it() -> None:
    bench = tiny.bench("llama")
    pack = pack_of(bench, [PARTS], [values_for(bench, PARTS, seed=0)])
    held: list[int] = []
    handles = [
        bench.backbone.module(name).register_forward_pre_hook(lambda _m, _a: held.append(len(pack._weave._pass.entered)))  # type: ignore[union-attr]
        for name in bench.backbone.blocks
    ]
    pack(batch_of(bench, INDEX[:1]))
    for handle in handles:
        handle.remove()
    assert held == [0, 0, 0]


def test_encoder_and_decoder_have_theirs_each_at_its_own() -> None:
    b = tiny.backbone("t5", task="generation", checkpoint="pair")
    found = PART.sites(b)
    assert [s.block for s in found] == list(range(6))
    for site in found:
        assert site.name.rpartition(".")[0] == site.reads.rpartition(".")[0]


def test_of_two_feed_forwards_in_a_block_each_has_its_own() -> None:
    """As in an MLP-Mixer, one over the patches and one over the features, and in a MobileBERT, of which some are in a list."""
    sizes = {"fc1": ("ffn.in", 4, 16), "fc2": ("ffn.out", 16, 4)}
    some = [Site(f"blocks.1.{mlp}.{end}", *sizes[end], block=1) for mlp in ("mlp_tokens", "mlp_channels") for end in sizes]
    below = Site("blocks.0.mlp_channels.fc1", *sizes["fc1"], block=0)
    for first, last in zip(some[::2], some[1::2], strict=True):
        assert feed_forward_entry([below, *some], last) == first
    inner, outer = (Site(f"layer.0.{where}.dense", "ffn.in", 4, 8, block=0) for where in ("ffn.0.intermediate", "intermediate"))
    assert feed_forward_entry([outer, inner], Site("layer.0.ffn.0.output.dense", "ffn.out", 8, 4, block=0)) == inner
    assert feed_forward_entry([outer, inner], Site("layer.0.output.dense", "ffn.out", 8, 4, block=0)) == outer
    assert feed_forward_entry([below], some[1]) is None


# what it starts as, and what it takes ----------------------------------------------------------------------------------------


def test_it_begins_as_the_frozen_model_with_the_papers_scaling() -> None:
    bench = tiny.bench("bert")
    part = Bottleneck(4, placement="parallel")
    site = part.sites(bench.backbone)[0]
    assert part.constants(site) == {"scaling": 4.0}
    assert replace(part, scaling=2.0).constants(site) == {"scaling": 2.0}
    assert [Bottleneck(placement=p).constants(site) for p in ("block", "ffn", "sublayers")] == [{"scaling": 1.0}] * 3  # type: ignore[arg-type]
    inits = part.tensors(bench.backbone, site)
    assert (inits["down"].scale, inits["up"].scale) == (0.02, 0.0)
    assert replace(part, up_std=0.5).tensors(bench.backbone, site)["up"].scale == 0.5
    learned = replace(part, scaling="learned")
    assert learned.constants(site) == {}
    assert learned.tensors(bench.backbone, site)["scaling"].draw(0, "x").tolist() == [1.0]


@pytest.mark.parametrize("placement", ["block", "ffn", "sublayers"])
def test_adapters_elsewhere_are_scaled_too(placement: Any) -> None:
    bench = tiny.bench("bert")
    plain = {"x": Bottleneck(4, placement=placement), "head": Head()}
    values = values_for(bench, plain, seed=1)
    tripled = {n: v * 3 if n.rsplit("/", 1)[1] in ("up", "up_bias") and n.startswith("x/") else v for n, v in values.items()}  # type: ignore[operator]
    wanted = pack_of(bench, [plain], [tripled])(batch_of(bench, INDEX[:1])).logits
    scaled = {"x": Bottleneck(4, placement=placement, scaling=3.0), "head": Head()}
    torch.testing.assert_close(pack_of(bench, [scaled], [values])(batch_of(bench, INDEX[:1])).logits, wanted, **CLOSE)


def test_a_block_without_a_first_layer_is_refused() -> None:
    b = tiny.fresh("bert")
    b.linears = [s for s in b.linears if (s.block, s.role) != (1, "ffn.in")]
    with pytest.raises(UserError, match=r'block 1 of backbone ".*" has no layer "ffn.in" beside which an adapter could be: set'):
        PART.sites(b)


@pytest.mark.parametrize("scaling", [0.0, -1.0, "learnt", float("nan")])
def test_what_is_no_scaling_is_refused(scaling: Any) -> None:
    with pytest.raises(UserError, match="scaling"):
        Bottleneck(scaling=scaling)


# methods ---------------------------------------------------------------------------------------------------------------------


def test_it_is_chosen_like_any_other_placement() -> None:
    made = settings.configure(FedPETuning, {"tune.kind": "bottleneck", "placement": "parallel", "scaling": "learned"})
    part = made.tune.parts(tiny.backbone("bert"), Head())["bottleneck"]
    assert part == Bottleneck(48, placement="parallel", activation="gelu_new", scaling="learned")
    made = settings.configure(FedAvg, {"tune.kind": "compacter", "placement": "parallel", "scaling": "2.5", "reduction": 8})
    part = made.tune.parts(tiny.backbone("bert"), Head())["compacter"]
    assert part == Compacter(reduction=8, placement="parallel", activation="relu", scaling=2.5)


def test_what_travels_is_the_adapter_and_no_more() -> None:
    learned = settings.configure(
        FedAvg, {"tune.kind": "bottleneck", "placement": "parallel", "scaling": "learned", "reduction": 8}
    )
    run = tiny.federation(learned, "bert", sizes=(5, 4), rounds=1)
    layers = tiny.backbone("bert").blocks
    mine = {n: tuple(v.shape) for n, v in run.server.shared.items() if n.startswith("bottleneck/")}  # type: ignore[union-attr]
    assert len(mine) == 5 * len(layers)
    assert {n.rsplit("/", 1)[1]: shape for n, shape in mine.items()} == {
        "down": (4, 32),
        "down_bias": (4,),
        "up": (32, 4),
        "up_bias": (32,),
        "scaling": (1,),
    }


@pytest.mark.parametrize("law", ["pack", "return"])
def test_a_method_with_a_placement_of_its_own_has_it_too(law: str) -> None:
    laws.LAWS[law](AdaFedSelecKD(reduction=8, placement="parallel", steps=2, batch=3))


def test_rows_see_nothing_of_what_else_is_in_their_pass() -> None:
    bench = tiny.bench("bert")
    pack = pack_of(bench, [PARTS], [values_for(bench, PARTS, seed=4)])
    whole = pack(batch_of(bench, INDEX[:1])).logits[0]
    for i in range(4):
        one = pack(batch_of(bench, np.array([[INDEX[0, i]]]))).logits[0]
        torch.testing.assert_close(one[0], whole[i], **CLOSE)
