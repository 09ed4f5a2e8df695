"""Parts with a client axis on one shared backbone: the same numbers as each client alone, and nothing left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, assert_as_alone, batch_of, grads, leaves, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError, WeftError
from weft.federation.pack import Pack

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
    values = values_for(bench, parts, seed=1)
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

    pack = leaves(pack_of(bench, [parts], [values]), "lora", "head")
    out = pack(batch_of(bench, rows[None]))
    torch.testing.assert_close(out.logits[0], expected, **CLOSE)

    got = grads(pack, pack.loss(out, batch_of(bench, rows[None])), "lora")
    F.cross_entropy(expected, labels).backward()
    assert len(got) == 2 * len(sites)
    for s in sites:
        layer = peft.base_model.model.get_submodule(s.name)
        for role, weight in (("A", layer.lora_A["default"].weight), ("B", layer.lora_B["default"].weight)):
            torch.testing.assert_close(got[f"lora/{s.name}/{role}"][0], weight.grad, **CLOSE)


RANKS = (1, 4, 2)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "deberta-v2", "albert", "modernbert", "t5"])
def test_a_pack_of_mixed_ranks_equals_its_clients_alone(kind: str) -> None:
    assert_as_alone(tiny.bench(kind), [{"lora": LoRA(r, 2.0 * r, "all"), "head": Head()} for r in RANKS])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_padding_of_smaller_ranks_stays_exactly_zero_through_training(kind: str) -> None:
    from weft.adaptation.optim import Optim

    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(r, 2.0 * r, "q,v"), "head": Head()} for r in RANKS]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = pack_of(bench, parts, values)
    optimizer = pack.optimizer("*", settings=Optim(kind, lr=0.05, weight_decay=0.1, clip=1.0), epochs=4, size=2)
    for batch in pack.batches(epochs=4, size=2):
        pack.step(optimizer, lambda p, b: p.loss(p(b), b), batch)
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
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = pack_of(bench, parts, values)
    out = pack(batch_of(bench, INDEX[[2, 0]], clients=[2, 0])).logits
    for row, i in ((0, 2), (1, 0)):
        one = alone(bench, parts, values)[i](batch_of(bench, INDEX[i : i + 1])).logits[0]
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out[row][valid], one[valid], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "deberta-v2", "t5"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_one_client_reaches_another(kind: str, precision: str) -> None:
    """Other rows and other weights for one client: the others' outputs keep every bit."""
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    parts = [{"lora": LoRA(2, 4.0, "all"), "adapter": Bottleneck(8), "head": Head()} for _ in range(3)]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    first = pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits
    length = bench.table.lengths
    twins = INDEX.copy()
    others = np.setdiff1d(np.arange(len(bench.table)), INDEX)
    longest = length[INDEX[INDEX >= 0]].max()
    twins[1] = [i for i in others if length[i] <= longest][:4]  # not longer: the width of the batch stays
    values[1] = values_for(bench, parts[1], seed=99)
    second = pack_of(bench, parts, values)(batch_of(bench, twins)).logits
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])


def test_the_gradient_of_one_clients_loss_is_zero_for_everybody_else() -> None:
    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(2, 4.0, "all"), "head": Head()} for _ in range(3)]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = leaves(pack_of(bench, parts, values), "*")
    batch = batch_of(bench, INDEX)
    for name, grad in grads(pack, pack.loss(pack(batch), batch)[1], "*").items():
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
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = pack_of(bench, parts, values)
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
                twin = pack_of(bench, [parts[i]], [scaled(values[i], "x", roles, at(i, j))])
                one = twin(batch_of(bench, INDEX[i : i + 1, j : j + 1])).logits
                torch.testing.assert_close(out[i, j], one[0, 0], **CLOSE)


def test_rows_have_no_weights_of_their_own_at_a_table_of_positions_that_all_rows_read() -> None:
    bench = tiny.bench("deberta-v2")
    weights = torch.full(INDEX.shape, 0.5, dtype=torch.float64)
    for at, fits in (("k", False), ("v", True)):
        parts = [{"x": LoRA(2, 4.0, at), "head": Head()} for _ in range(len(INDEX))]
        pack = pack_of(bench, parts, [values_for(bench, p, seed=i) for i, p in enumerate(parts)])
        with nullcontext() if fits else pytest.raises(UserError, match=r"computes .* for all rows at once too"):
            pack(batch_of(bench, INDEX), use={"x": weights})


def test_parts_that_are_not_named_are_off_but_heads_and_deltas_stay_on() -> None:
    bench = tiny.bench("bert")
    parts = {"a": LoRA(2, 4.0, "q"), "b": LoRA(2, 4.0, "v"), "d": Delta("q,v"), "head": Head()}
    values = values_for(bench, parts, seed=3)
    pack = pack_of(bench, [parts], [values])
    batch = batch_of(bench, INDEX[:1])
    only = {n: parts[n] for n in ("a", "d", "head")}
    expected = pack_of(bench, [only], [{n: v for n, v in values.items() if not n.startswith("b/")}])(batch)
    torch.testing.assert_close(pack(batch, use={"a": 1.0}).logits, expected.logits, **CLOSE)
    everything = pack(batch).logits
    torch.testing.assert_close(pack(batch, use={"a": 1.0, "b": 1.0}).logits, everything, **CLOSE)
    assert not torch.allclose(everything, expected.logits, **CLOSE)


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
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    pack = leaves(pack_of(bench, parts, values), "*")
    if not b.shared_blocks:
        pack.hold(torch.tensor([[True, False, True], [True, True, True]]))
    batch = batch_of(bench, INDEX[:2])
    pack.loss(pack(batch), batch).sum().backward()
    good = pack(batch).logits
    assert list(tiny.hooks(b.model)) == []

    broken = [{"lora": Broken(2, 4.0, "ffn.out"), "head": Head()} for _ in range(2)]
    bad = pack_of(bench, broken, [values_for(bench, p, seed=i) for i, p in enumerate(broken)])
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
    values = values_for(bench, {"head": Head()}, seed=0)
    pack_of(bench, [{"head": Head()}], [values])(batch_of(bench, INDEX[:1]))
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
    nested.append(pack_of(bench, [parts], [values_for(bench, parts, seed=0)]))
    with pytest.raises(WeftError, match="inside another"):
        nested[0](batch_of(bench, INDEX[:1]))
    assert list(tiny.hooks(bench.backbone.model)) == []


def test_the_adaptation_costs_no_copy_of_the_backbone_per_client() -> None:
    """K clients see the same frozen tensors: a pack holds parts only."""
    bench = tiny.bench("bert")
    parts = [{"lora": LoRA(1, 1.0, "q"), "head": Head()} for _ in range(8)]
    pack = pack_of(bench, parts, [values_for(bench, p, seed=0) for p in parts])
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in pack.tensors.values()}
    per_client = 3 * 2 * 32 + 3 * 32 + 3
    assert sum(own.values()) == 8 * 8 * per_client
