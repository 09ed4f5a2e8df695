"""Parts with a client axis on one shared backbone: the same numbers as each client's own model, and nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weft.adaptation.bias import Bias
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.load import describe_model
from weft.errors import UserError, WeftError
from weft.federation.pack import Batch, Bench, Pack, make_batch
from weft.tensors.lowrank import LowRank

CLOSE = {"rtol": 0.0, "atol": 1e-11}  # float64 throughout: only the order of sums differs
INDEX = np.array([[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, -1]])


def batch_of(bench: Bench, index: np.ndarray, clients: list[int] | None = None) -> Batch:
    return make_batch(bench.table, index, clients, bench.backbone.device)


def alone(bench: Bench, parts: Sequence[Mapping[str, Part]], values: Sequence[Mapping[str, Any]]) -> list[Pack]:
    return [tiny.pack_of(bench, [p], [v]) for p, v in zip(parts, values, strict=True)]


def own_model(b: Backbone) -> Any:
    """A copy of the frozen model that a test may change."""
    return copy.deepcopy(b.model)


@torch.no_grad()
def set_head(model: Any, b: Backbone, values: Mapping[str, Any], part: str = "head") -> None:
    for site in b.heads:
        for role, p in model.get_submodule(site.name).named_parameters():
            p.copy_(values[f"{part}/{site.name}/{role}"])


def logits_of(model: Any, bench: Bench, rows: np.ndarray) -> Tensor:
    return model(**bench.table.collate(rows)).logits


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("bert", "all"),
        ("bert", "q,v"),
        ("roberta", "all"),
        ("distilbert", "all"),
        ("albert", "all"),
        ("deberta-v2", "all"),
        ("modernbert", "all"),
        ("gpt2", "all"),
        ("llama", "all"),
        ("qwen2", "attention"),
    ],
)
def test_lora_as_a_hook_equals_pefts_layer_in_logits_and_gradients(kind: str, at: str) -> None:
    from peft import LoraConfig, get_peft_model

    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"lora": LoRA(3, 5.0, at), "head": Head()}
    values = tiny.values_for(bench, parts, seed=1)
    sites = b.sites(at)
    model = own_model(b)
    set_head(model, b, values)
    config = LoraConfig(
        r=3,
        lora_alpha=5.0,
        target_modules=[s.name for s in sites],
        lora_dropout=0.0,
        fan_in_fan_out=kind == "gpt2",
    )
    peft = get_peft_model(model, config).double().eval()
    with torch.no_grad():
        for s in sites:
            layer = peft.base_model.model.get_submodule(s.name)
            layer.lora_A["default"].weight.copy_(values[f"lora/{s.name}/A"])
            layer.lora_B["default"].weight.copy_(values[f"lora/{s.name}/B"])
    rows = INDEX[0]
    labels = torch.from_numpy(bench.table.labels[rows])
    expected = peft(**bench.table.collate(rows)).logits

    pack = tiny.leaves(tiny.pack_of(bench, [parts], [values]), "lora", "head")
    out = pack(batch_of(bench, rows[None]))
    torch.testing.assert_close(out.logits[0], expected, **CLOSE)

    got = tiny.grads(pack, pack.loss(out, batch_of(bench, rows[None])), "lora")
    F.cross_entropy(expected, labels).backward()
    assert len(got) == 2 * len(sites)
    for s in sites:
        layer = peft.base_model.model.get_submodule(s.name)
        for role, weight in (("A", layer.lora_A["default"].weight), ("B", layer.lora_B["default"].weight)):
            torch.testing.assert_close(got[f"lora/{s.name}/{role}"][0], weight.grad, **CLOSE)


RANKS = (1, 4, 2)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "deberta-v2", "albert", "modernbert"])
def test_a_pack_of_mixed_ranks_equals_its_clients_alone(kind: str) -> None:
    bench = tiny.bench(kind)
    parts = [{"lora": LoRA(r, 2.0 * r, "all"), "head": Head()} for r in RANKS]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.leaves(tiny.pack_of(bench, parts, values), "*")
    batch = batch_of(bench, INDEX)
    out = pack(batch)
    loss = pack.loss(out, batch)
    got = tiny.grads(pack, loss, "*")
    for i, single in enumerate(alone(bench, parts, values)):
        tiny.leaves(single, "*")
        mine = batch_of(bench, INDEX[i : i + 1])
        one = single(mine)
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out.logits[i][valid], one.logits[0][valid], **CLOSE)
        own = single.loss(one, mine)
        torch.testing.assert_close(loss[i], own[0], **CLOSE)
        for name, grad in tiny.grads(single, own, "*").items():
            where = tuple(slice(0, n) for n in grad.shape[1:])
            torch.testing.assert_close(got[name][i][where], grad[0], **CLOSE)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_padding_of_smaller_ranks_stays_exactly_zero_through_training(kind: str) -> None:
    from weft.adaptation.optim import Optim

    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(r, 2.0 * r, "q,v"), "head": Head()} for r in RANKS]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.pack_of(bench, parts, values)
    optimizer = pack.optimizer("*", settings=Optim(kind, lr=0.05, weight_decay=0.1, clip=1.0), epochs=4, size=2)
    for batch in pack.batches(epochs=4, size=2):
        pack.step(optimizer, pack.loss(pack(batch), batch), batch)
    for site in bench.backbone.sites("q,v"):
        for i, rank in enumerate(RANKS):
            a, b = pack.tensors[f"lora/{site.name}/A"][i], pack.tensors[f"lora/{site.name}/B"][i]
            assert not a[rank:].any()
            assert not b[:, rank:].any()
            assert bool(a[:rank].any())
            assert pack.value(i, f"lora/{site.name}/A").shape == (rank, site.d_in)


def test_clients_that_left_the_batch_do_not_shift_the_others() -> None:
    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(r, 2.0, "q,v"), "head": Head()} for r in RANKS]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.pack_of(bench, parts, values)
    out = pack(batch_of(bench, INDEX[[2, 0]], clients=[2, 0])).logits
    for row, i in ((0, 2), (1, 0)):
        one = alone(bench, parts, values)[i](batch_of(bench, INDEX[i : i + 1])).logits[0]
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[row][valid], one[valid], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "deberta-v2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_one_client_reaches_another(kind: str, precision: str) -> None:
    """Other rows and other weights for one client: the others' outputs keep every bit."""
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    parts = [{"lora": LoRA(2, 4.0, "all"), "adapter": Bottleneck(8), "head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    first = tiny.pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits
    length = bench.table.lengths
    twins = INDEX.copy()
    others = np.setdiff1d(np.arange(len(bench.table)), INDEX)
    longest = length[INDEX[INDEX >= 0]].max()
    twins[1] = [i for i in others if length[i] <= longest][:4]  # not longer: the width of the batch stays
    values[1] = tiny.values_for(bench, parts[1], seed=99)
    second = tiny.pack_of(bench, parts, values)(batch_of(bench, twins)).logits
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])


def test_the_gradient_of_one_clients_loss_is_zero_for_everybody_else() -> None:
    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(2, 4.0, "all"), "head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.leaves(tiny.pack_of(bench, parts, values), "*")
    batch = batch_of(bench, INDEX)
    for name, grad in tiny.grads(pack, pack.loss(pack(batch), batch)[1], "*").items():
        assert not grad[[0, 2]].any(), name
        assert bool(grad[1].any()), name


# weights of parts -----------------------------------------------------------------------------------------------------


def scaled(values: Mapping[str, Any], part: str, roles: Sequence[str], factor: float) -> dict[str, Any]:
    return {n: v * factor if n.startswith(part + "/") and n.rsplit("/", 1)[1] in roles else v for n, v in values.items()}


@pytest.mark.parametrize(("part", "roles"), [(LoRA(2, 4.0, "all"), ("B",)), (Bottleneck(8), ("up", "up_bias"))])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_part_weights_by_number_by_client_and_by_example_scale_what_the_part_adds(
    kind: str, part: Part, roles: tuple[str, ...]
) -> None:
    bench = tiny.bench(kind)
    parts = [{"x": part, "head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.pack_of(bench, parts, values)
    per_client = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    per_row = torch.tensor([[0.5, 1.0, 0.0, 2.0], [1.0] * 4, [0.3, 0.2, 0.1, 0.0]], dtype=torch.float64)
    for weight, at in (
        (0.25, lambda i, j: 0.25),
        (per_client, lambda i, j: float(per_client[i])),
        (per_row, lambda i, j: float(per_row[i, j])),
    ):
        out = pack(batch_of(bench, INDEX), use={"x": weight}).logits
        for i in range(3):
            for j in range(4):
                if INDEX[i, j] < 0:
                    continue
                twin = tiny.pack_of(bench, [parts[i]], [scaled(values[i], "x", roles, at(i, j))])
                one = twin(batch_of(bench, INDEX[i : i + 1, j : j + 1])).logits
                torch.testing.assert_close(out[i, j], one[0, 0], **CLOSE)


def test_parts_that_are_not_named_are_off_but_heads_and_deltas_stay_on() -> None:
    bench = tiny.bench("bert")
    parts = {"a": LoRA(2, 4.0, "q"), "b": LoRA(2, 4.0, "v"), "d": Delta("q,v"), "head": Head()}
    values = tiny.values_for(bench, parts, seed=3)
    pack = tiny.pack_of(bench, [parts], [values])
    batch = batch_of(bench, INDEX[:1])
    only = {n: parts[n] for n in ("a", "d", "head")}
    expected = tiny.pack_of(bench, [only], [{n: v for n, v in values.items() if not n.startswith("b/")}])(batch)
    torch.testing.assert_close(pack(batch, use={"a": 1.0}).logits, expected.logits, **CLOSE)
    everything = pack(batch).logits
    torch.testing.assert_close(pack(batch, use={"a": 1.0, "b": 1.0}).logits, everything, **CLOSE)
    assert not torch.allclose(everything, expected.logits, **CLOSE)


# bottleneck, bias, delta, head ----------------------------------------------------------------------------------------


def adapter(values: Mapping[str, Any], site: str, h: Tensor, part: str = "x") -> Tensor:
    w = {role: values[f"{part}/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}
    return F.relu(h @ w["down"].T + w["down_bias"]) @ w["up"].T + w["up_bias"]


class PostNorm(nn.Module):
    """LN(s + A(LN(s))), the serial adapter of a post-norm block."""

    def __init__(self, norm: nn.Module, values: Mapping[str, Any], site: str):
        super().__init__()
        self.norm, self.values, self.site = norm, values, site

    def forward(self, s: Tensor) -> Tensor:
        return self.norm(s + adapter(self.values, self.site, self.norm(s)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "deberta-v2"])
def test_a_bottleneck_in_a_post_norm_block_is_the_norm_of_sum_and_adapter(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"x": Bottleneck(4), "head": Head()}
    values = tiny.values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    for site in b.bottlenecks:
        parent, leaf = site.name.rsplit(".", 1)
        setattr(model.get_submodule(parent), leaf, PostNorm(model.get_submodule(site.name), values, site.name))
    got = tiny.pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "modernbert", "opt", "phi"])
def test_a_bottleneck_after_any_other_block_is_its_output_plus_adapter(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"x": Bottleneck(4), "head": Head()}
    values = tiny.values_for(bench, parts, seed=2)
    model = own_model(b)
    set_head(model, b, values)
    for site in b.bottlenecks:

        def after(_m: nn.Module, _a: object, out: Any, name: str = site.name) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            h = h + adapter(values, name, h)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        model.get_submodule(site.name).register_forward_hook(after)
    got = tiny.pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_biases_at_their_start_change_no_bit(kind: str, precision: str) -> None:
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    head = tiny.values_for(bench, {"head": Head()}, seed=1)
    start = {
        f"bias/{s.name}/bias": Bias().tensors(bench.backbone, s)["bias"].draw(0).to(bench.dtype)
        for s in Bias().sites(bench.backbone)
    }
    batch = batch_of(bench, INDEX[:1])
    plain = tiny.pack_of(bench, [{"head": Head()}], [head])(batch).logits
    with_bias = tiny.pack_of(bench, [{"bias": Bias(), "head": Head()}], [start | head])(batch).logits
    assert torch.equal(plain, with_bias)


@pytest.mark.parametrize("scope", ["all", "blocks", "linear", "norm"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "albert", "opt"])
def test_a_bias_part_equals_a_model_with_those_biases(kind: str, scope: str) -> None:
    if kind == "qwen2" and scope == "norm":
        with pytest.raises(UserError, match=r'no bias vectors in scope "norm"'):
            Bias(scope).sites(tiny.backbone(kind))
        return
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = {"bias": Bias(scope), "head": Head()}
    values = tiny.values_for(bench, parts, seed=4)
    model = own_model(b)
    set_head(model, b, values)
    with torch.no_grad():
        for s in Bias(scope).sites(b):
            model.get_submodule(s.name).bias.copy_(values[f"bias/{s.name}/bias"])
    got = tiny.pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


def test_bias_scopes_cover_what_they_name() -> None:
    b = tiny.backbone("bert")
    base = {n.removesuffix(".bias") for n, _ in b.model.named_parameters() if n.endswith(".bias")}
    base -= {h.name for h in b.heads}
    inside = {n for n in base if n.startswith("bert.encoder.")}
    norms = {n for n in base if n.endswith("LayerNorm")}
    found = {scope: {s.name for s in Bias(scope).sites(b)} for scope in ("all", "blocks", "linear", "norm")}
    assert found == {
        "all": base,
        "blocks": inside,
        "linear": inside - norms,
        "norm": norms,
    }


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_a_backbone_without_biases_says_so_and_takes_zero_ones_on_request(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    with pytest.raises(UserError, match=r"add_missing=true"):
        Bias().sites(b)
    part = Bias("linear", add_missing=True)
    parts = {"bias": part, "head": Head()}
    values = tiny.values_for(bench, parts, seed=4)
    model = own_model(b)
    set_head(model, b, values)
    for s in part.sites(b):
        model.get_submodule(s.name).bias = nn.Parameter(values[f"bias/{s.name}/bias"])
    got = tiny.pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("common", [True, False])
def test_a_delta_equals_dense_weights_with_it_added(kind: str, common: bool) -> None:
    """One value for the whole pack takes a path without copies; both paths must give the same."""
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = [{"base": Delta("all"), "head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i, delta_rank=1 + i) for i, p in enumerate(parts)]
    if common:
        values = [{n: values[0][n] if n.startswith("base/") else w for n, w in v.items()} for v in values]
    pack = tiny.pack_of(bench, parts, values)
    out = pack(batch_of(bench, INDEX)).logits
    strides = {pack.tensors[f"base/{s.name}/delta.A"].stride(0) for s in b.sites("all")}
    assert (strides == {0}) == common
    for i in range(3):
        model = own_model(b)
        set_head(model, b, values[i])
        with torch.no_grad():
            for s in b.sites("all"):
                dense = values[i][f"base/{s.name}/delta"].dense()
                model.get_submodule(s.name).weight += dense.T if kind == "gpt2" else dense
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[i][valid], logits_of(model, bench, INDEX[i][valid]), **CLOSE)


def test_a_delta_of_rank_zero_changes_nothing() -> None:
    bench = tiny.bench("bert")
    head = tiny.values_for(bench, {"head": Head()}, seed=1)
    parts = {"base": Delta("q"), "head": Head()}
    zero = {f"base/{s.name}/delta": LowRank.zeros(32, 32, dtype=torch.float64) for s in bench.backbone.sites("q")}
    batch = batch_of(bench, INDEX[:1])
    plain = tiny.pack_of(bench, [{"head": Head()}], [head])(batch).logits
    assert torch.equal(tiny.pack_of(bench, [parts], [zero | head])(batch).logits, plain)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert", "deberta-v2", "gpt2"])
def test_every_client_has_a_whole_head_of_its_own(kind: str) -> None:
    bench = tiny.bench(kind)
    parts = [{"head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    out = tiny.pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits
    for i in range(3):
        model = own_model(bench.backbone)
        set_head(model, bench.backbone, values[i])
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[i][valid], logits_of(model, bench, INDEX[i][valid]), **CLOSE)


def test_a_freshly_drawn_pooler_is_trained_as_part_of_the_head() -> None:
    bench = tiny.bench(tiny.backbone("bert", checkpoint="mlm"))
    parts = {"head": Head()}
    values = tiny.values_for(bench, parts, seed=1)
    assert {n.split("/")[1] for n in values} == {"bert.pooler.dense", "classifier"}
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    got = tiny.pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0]
    torch.testing.assert_close(got, logits_of(model, bench, INDEX[0]), **CLOSE)


# layer subsets --------------------------------------------------------------------------------------------------------


def shortened(b: Backbone, keep: Sequence[int]) -> Backbone:
    """The backbone with only those blocks, as a model of its own."""
    model = own_model(b)
    stack = b.blocks[0].rsplit(".", 1)[0]
    parent, leaf = stack.rsplit(".", 1)
    setattr(model.get_submodule(parent), leaf, nn.ModuleList(model.get_submodule(b.blocks[i]) for i in keep))
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in keep]
    return describe_model(model, b.tokenizer, set(), name="short", dtype=torch.float64)


def moved(values: Mapping[str, Any], b: Backbone, keep: Sequence[int]) -> dict[str, Any]:
    """The values under the names that the shortened backbone gives its sites."""
    found = {}
    for name, value in values.items():
        part, site, role = name.split("/")
        if site in {h.name for h in b.heads}:
            found[name] = value
            continue
        index = next(i for i, path in enumerate(b.blocks) if site.startswith(path + ".") or site == path)
        if index in keep:
            path = b.blocks[0].rsplit(".", 1)[0] + f".{list(keep).index(index)}"
            found[f"{part}/{path}{site[len(b.blocks[index]) :]}/{role}"] = value
    return found


HELD = ([0, 2], [1], [0, 1, 2])


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "deberta-v2", "distilbert", "modernbert", "opt"])
def test_a_pack_of_layer_subsets_equals_each_clients_own_shortened_model(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = [{"lora": LoRA(2, 4.0, "all"), "x": Bottleneck(8), "head": Head()} for _ in range(3)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    hold = torch.tensor([[block in kept for block in range(3)] for kept in HELD])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    pack = tiny.leaves(tiny.pack_of(bench, parts, values), "*")
    pack.hold(hold)
    batch = batch_of(bench, INDEX)
    out = pack(batch, use={"lora": weight, "x": 1.0})
    loss = pack.loss(out, batch)
    got = tiny.grads(pack, loss, "*")
    for i, keep in enumerate(HELD):
        short = Bench(shortened(b, keep), bench.task, bench.table, bench.seed)
        single = tiny.leaves(tiny.pack_of(short, [parts[i]], [moved(values[i], b, keep)]), "*")
        mine = batch_of(short, INDEX[i : i + 1])
        one = single(mine, use={"lora": float(weight[i]), "x": 1.0})
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out.logits[i][valid], one.logits[0][valid], **CLOSE)
        own = tiny.grads(single, single.loss(one, mine), "*")
        mine_only = {n: g[i : i + 1] for n, g in got.items()}
        held = moved(mine_only, b, keep)
        assert held.keys() == own.keys()
        for name, grad in own.items():
            torch.testing.assert_close(held[name], grad, **CLOSE)
        for name, grad in mine_only.items():  # and nothing flows into blocks that the client lacks
            if not moved({name: grad}, b, keep):
                assert not grad.any(), name


@pytest.mark.parametrize(("kind", "rows"), [("deberta-v2", 32), ("llama", 7), ("bert", 7), ("gpt2", 7)])
def test_tables_that_are_as_long_as_the_batch_has_rows_are_not_taken_for_rows(kind: str, rows: int) -> None:
    """DeBERTa hands its 2·16 relative positions to every block, LLaMA positions of a 7-token batch: 7 rows here, too."""
    b = tiny.backbone(kind)
    table = tiny.table(b, 64)
    same = np.flatnonzero(table.lengths <= 7)
    index = np.resize(same, rows)
    index[0] = np.flatnonzero(table.lengths == 7)[0] if kind != "deberta-v2" else index[0]
    bench = Bench(b, tiny.bench(kind).task, table, 0)
    parts = [{"head": Head()} for _ in range(rows)]
    values = [tiny.values_for(bench, p, seed=0) for p in parts]
    pack = tiny.pack_of(bench, parts, values)
    pack.hold(torch.tensor([[True, i % 2 == 0, True] for i in range(rows)]))
    out = pack(batch_of(bench, index[:, None])).logits[:, 0]
    short = Bench(shortened(b, [0, 2]), bench.task, table, 0)
    full = tiny.pack_of(bench, parts[:1], values[:1])(batch_of(bench, index[None])).logits[0]
    cut = tiny.pack_of(short, parts[:1], values[:1])(batch_of(short, index[None])).logits[0]
    expected = torch.where((torch.arange(rows) % 2 == 0)[:, None], full, cut)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_a_client_without_any_block_keeps_its_embeddings() -> None:
    bench = tiny.bench("distilbert")
    b = bench.backbone
    values = tiny.values_for(bench, {"head": Head()}, seed=0)
    pack = tiny.pack_of(bench, [{"head": Head()}] * 2, [values] * 2)
    pack.hold(torch.tensor([[False] * 3, [True] * 3]))
    out = pack(batch_of(bench, INDEX[:2])).logits
    model = own_model(b)
    set_head(model, b, values)
    first = model.distilbert.embeddings(bench.table.collate(INDEX[0])["input_ids"])[:, 0]
    expected = model.classifier(F.relu(model.pre_classifier(first)))
    torch.testing.assert_close(out[0], expected, **CLOSE)
    torch.testing.assert_close(out[1], logits_of(model, bench, INDEX[1]), **CLOSE)


def test_block_subsets_of_a_model_with_one_shared_block_are_refused() -> None:
    bench = tiny.bench("albert")
    pack = tiny.pack_of(bench, [{"head": Head()}], [tiny.values_for(bench, {"head": Head()}, seed=0)])
    with pytest.raises(WeftError, match="one block many times"):
        pack.hold(torch.ones(1, 1, dtype=torch.bool))


# nothing left behind --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(LoRA):
    """Fails in the middle of the forward pass."""

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        raise RuntimeError("broken part")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta-v2", "albert"])
def test_after_a_pass_the_backbone_is_as_it_was_even_if_the_pass_failed(kind: str) -> None:
    bench = tiny.bench(tiny.fresh(kind))
    b = bench.backbone
    before = frozen_fingerprint(b)
    parts = [{"lora": LoRA(2, 4.0, "all"), "x": Bottleneck(8), "d": Delta("q"), "head": Head()} for _ in range(2)]
    values = [tiny.values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = tiny.leaves(tiny.pack_of(bench, parts, values), "*")
    if not b.shared_blocks:
        pack.hold(torch.tensor([[True, False, True], [True, True, True]]))
    batch = batch_of(bench, INDEX[:2])
    pack.loss(pack(batch), batch).sum().backward()
    good = pack(batch).logits
    assert list(tiny.hooks(b.model)) == []

    broken = [{"lora": Broken(2, 4.0, "ffn.out"), "head": Head()} for _ in range(2)]
    bad = tiny.pack_of(bench, broken, [tiny.values_for(bench, p, seed=i) for i, p in enumerate(broken)])
    if not b.shared_blocks:
        bad.hold(torch.tensor([[True, False, True], [True, True, True]]))
    for _ in range(2):  # the second time too: the pass that failed has left nothing in the way
        with pytest.raises(RuntimeError, match="broken part"):
            bad(batch)
        assert list(tiny.hooks(b.model)) == []
    assert torch.equal(pack(batch).logits, good)
    assert frozen_fingerprint(b) == before
    assert all(p.grad is None for p in b.model.parameters())


def test_a_forward_that_someone_else_put_on_a_module_is_put_back() -> None:
    b = tiny.fresh("bert")
    bench = tiny.bench(b)
    head = b.module("classifier")
    calls: list[int] = []
    mine = head.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return mine(x)

    head.forward = counted
    values = tiny.values_for(bench, {"head": Head()}, seed=0)
    tiny.pack_of(bench, [{"head": Head()}], [values])(batch_of(bench, INDEX[:1]))
    assert head.forward is counted
    assert not calls
    b.model(**bench.table.collate(INDEX[0]))
    assert calls == [1]


def test_one_pass_inside_another_on_the_same_pack_is_an_error() -> None:
    bench = tiny.bench("bert")
    nested: list[Pack] = []

    @dataclass(frozen=True)
    class Nested(LoRA):
        def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
            nested[0](batch_of(bench, INDEX[:1]))
            return out

    parts = {"lora": Nested(2, 4.0, "q"), "head": Head()}
    nested.append(tiny.pack_of(bench, [parts], [tiny.values_for(bench, parts, seed=0)]))
    with pytest.raises(WeftError, match="inside another"):
        nested[0](batch_of(bench, INDEX[:1]))
    assert list(tiny.hooks(bench.backbone.model)) == []


def test_the_adaptation_costs_no_copy_of_the_backbone_per_client() -> None:
    """K clients see the same frozen tensors: a pack holds parts only."""
    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(1, 1.0, "q"), "head": Head()} for _ in range(8)]
    pack = tiny.pack_of(bench, parts, [tiny.values_for(bench, p, seed=0) for p in parts])
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in pack.tensors.values()}
    per_client = 3 * 2 * 32 + 3 * 32 + 3
    assert sum(own.values()) == 8 * 8 * per_client
