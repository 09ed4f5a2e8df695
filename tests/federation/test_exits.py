"""Exits after inner blocks: the model cut off there, with a head of its own, in packs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.exits import Exit
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION, MASKED, TOKENS
from weft.tensors.forms import Value
from weft.testing.plays import shallow

ENDS = {"exit1": 0, "exit2": 1}  # of two blocks or three
PARTS: dict[str, Part] = {"lora": LoRA(2, 4.0, "all"), "exit1": Exit(), "exit2": Exit()}


def packed(bench: Bench) -> Pack:
    return pack_of(bench, [PARTS] * 3, [values_for(bench, PARTS, seed=i) for i in range(3)])


def cut_off(bench: Bench, end: int) -> Any:
    """A copy of the model that ends after a block."""
    model = copy.deepcopy(bench.backbone.model)
    stack = model.get_submodule(bench.backbone.blocks[0].rsplit(".", 1)[0])
    del stack[end + 1 :]
    if hasattr(model.config, "num_hidden_layers"):
        model.config.num_hidden_layers = end + 1
    return model


@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit", "llama", "gpt2", "t5"])
def test_an_exit_is_the_model_that_ends_there(kind: str) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"exit1": Exit(), "exit2": Exit()}
    values = [values_for(bench, parts, seed=i) for i in range(2)]
    pack = pack_of(bench, [parts] * 2, values)
    batch = batch_of(bench, INDEX[:2])
    found = pack.exits(batch, ENDS)
    for name, end in ENDS.items():
        for k in range(2):
            model = cut_off(bench, end)
            for site in bench.backbone.heads:
                for role, param in model.get_submodule(site.name).named_parameters():
                    param.data.copy_(values[k][f"{name}/{site.name}/{role}"])  # type: ignore[arg-type]
            rows = INDEX[k][INDEX[k] >= 0]
            wanted = model(**bench.backbone.to_model(bench.table.collate(rows))).logits
            torch.testing.assert_close(found[name].logits[k, : len(rows)], wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_the_last_exit_is_a_head(kind: str) -> None:
    bench = tiny.bench(kind)
    last = len(bench.backbone.blocks) - 1
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "all"), "exit": Exit()}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    pack, batch = pack_of(bench, [parts] * 3, values), batch_of(bench, INDEX)
    headed: list[dict[str, Value]] = [{n.replace("exit/", "head/"): v for n, v in own.items()} for own in values]
    plain = pack_of(bench, [{"lora": parts["lora"], "head": Head()}] * 3, headed)
    torch.testing.assert_close(pack.exits(batch, {"exit": last})["exit"].logits, plain(batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "auto"), ("vit", "auto"), ("llama", GENERATION), ("bert", MASKED), ("bert", TOKENS)]
)
def test_a_pack_gives_each_client_the_exits_and_the_gradients_that_it_has_alone(kind: str, task: str) -> None:
    bench = tiny.federation(FedIT(rank=2), kind if task == "auto" else shallow(FedIT(), task=task), task=task).bench
    values = [values_for(bench, PARTS, seed=i) for i in range(3)]
    together, batch = leaves(pack_of(bench, [PARTS] * 3, values), "*"), batch_of(bench, INDEX)
    out = together.exits(batch, ENDS)
    slopes = grads(together, sum(together.loss(o, batch) for o in out.values()), "*")  # type: ignore[arg-type]
    assert not torch.equal(together.loss(out["exit1"], batch), together.loss(out["exit2"], batch))
    for k, value in enumerate(values):
        alone, mine = leaves(pack_of(bench, [PARTS], [value]), "*"), batch_of(bench, INDEX[k : k + 1])
        found = alone.exits(mine, ENDS)
        for name, one in found.items():
            torch.testing.assert_close(together.loss(out[name], batch)[k], alone.loss(one, mine)[0], **CLOSE)
        wanted = grads(alone, sum(alone.loss(o, mine) for o in found.values()), "*")  # type: ignore[arg-type]
        for name, whole in slopes.items():
            torch.testing.assert_close(whole[k], wanted[name][0], **CLOSE)
    used = {n for n, g in slopes.items() if bool(g.any())}
    assert any(n.startswith("exit1/") for n in used)
    assert any(n.startswith("exit2/") for n in used)
    assert not any(n.startswith("lora/") and ".2." in n for n in used), "what lies above the last exit is not seen"


def test_exits_take_no_part_in_other_passes_and_a_head_none_in_theirs() -> None:
    bench = tiny.bench("bert")
    parts = PARTS | {"head": Head()}
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    pack, batch = pack_of(bench, [parts] * 3, values), batch_of(bench, INDEX)
    before = pack(batch).logits
    bare = pack_of(bench, [{n: p for n, p in parts.items() if not n.startswith("exit")}] * 3, values)
    assert torch.equal(before, bare(batch).logits)
    without = pack_of(bench, [PARTS] * 3, values)
    for name, out in pack.exits(batch, ENDS).items():
        assert torch.equal(out.logits, without.exits(batch, ENDS)[name].logits)
    assert torch.equal(pack(batch).logits, before), "nothing of an exit stays"


def test_clients_that_hold_fewer_blocks_have_the_exits_below() -> None:
    bench = tiny.bench("bert")
    deep: dict[str, Part] = {"lora": LoRA(2, 4.0, "q", blocks=(0, 1)), "exit1": Exit(), "exit2": Exit()}
    low: dict[str, Part] = {"lora": LoRA(2, 4.0, "q", blocks=(0,)), "exit1": Exit()}
    values = [values_for(bench, own, seed=i) for i, own in enumerate((deep, low, deep))]
    pack, batch = pack_of(bench, [deep, low, deep], values), batch_of(bench, INDEX)
    pack.hold(torch.tensor([[True, True, False], [True, False, False], [True, True, False]]))
    found = pack.exits(batch, ENDS)
    for k, own in enumerate((deep, low, deep)):
        alone = pack_of(bench, [own], [values[k]])
        ends = {n: e for n, e in ENDS.items() if n in own}
        for name, out in alone.exits(batch_of(bench, INDEX[k : k + 1]), ends).items():
            torch.testing.assert_close(found[name].logits[k], out.logits[0], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_cached_blocks_change_no_exit(kind: str) -> None:
    """Parts sit above the first exit, whose block must run all the same."""
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "q", blocks=(2,)), "exit1": Exit(), "exit2": Exit()}
    found = []
    for cache in (False, True):
        bench = tiny.bench(kind, prefix=cache)
        pack = pack_of(bench, [parts] * 3, [values_for(bench, parts, seed=i) for i in range(3)])
        found.append(pack.exits(batch_of(bench, INDEX), {"exit1": 1, "exit2": 2}))
    there = torch.from_numpy(INDEX >= 0)
    for name, out in found[0].items():
        torch.testing.assert_close(out.logits[there], found[1][name].logits[there], **CLOSE)


def test_recomputed_blocks_give_the_same_exits_and_gradients() -> None:
    found = []
    for recompute in (False, True):
        bench = tiny.bench("bert")
        bench.recompute = recompute
        pack, batch = leaves(packed(bench), "*"), batch_of(bench, INDEX)
        loss = sum(pack.loss(o, batch) for o in pack.exits(batch, ENDS).values())
        found.append(grads(pack, loss, "*"))  # type: ignore[arg-type]
    assert all(torch.equal(g, found[1][n]) for n, g in found[0].items())


def test_blocks_that_are_no_blocks_of_their_own_have_no_exits() -> None:
    bench = tiny.bench("albert")
    pack = pack_of(bench, [{"exit": Exit()}], [values_for(bench, {"exit": Exit()}, seed=0)])
    with pytest.raises(Exception, match="calls one block many times"):
        pack.exits(batch_of(bench, np.asarray(INDEX[:1])), {"exit": 0})
