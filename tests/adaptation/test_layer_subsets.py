"""Clients that hold some of the blocks share a pass, and each gets what its own shortened model gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.backbones.backbone import Backbone
from weft.backbones.freeze import describe_model
from weft.errors import WeftError
from weft.federation.bench import Bench


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


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "deberta-v2", "distilbert", "modernbert", "opt", "t5", "bloom"])
def test_a_pack_of_layer_subsets_equals_each_clients_own_shortened_model(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    parts = [
        {"lora": LoRA(2, 4.0, "all"), "x": Bottleneck(8), "beside": Bottleneck(8, placement="parallel"), "head": Head()}
        for _ in range(3)
    ]
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    hold = torch.tensor([[block in kept for block in range(3)] for kept in HELD])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    pack = leaves(pack_of(bench, parts, values), "*")
    pack.hold(hold)
    batch = batch_of(bench, INDEX)
    out = pack(batch, use={"lora": weight, "x": 1.0, "beside": 1.0})
    loss = pack.loss(out, batch)
    got = grads(pack, loss, "*")
    for i, keep in enumerate(HELD):
        short = Bench(shortened(b, keep), bench.task, bench.table, bench.seed)
        single = leaves(pack_of(short, [parts[i]], [moved(values[i], b, keep)]), "*")
        mine = batch_of(short, INDEX[i : i + 1])
        one = single(mine, use={"lora": float(weight[i]), "x": 1.0, "beside": 1.0})
        valid = INDEX[i] >= 0
        torch.testing.assert_close(out.logits[i][valid], one.logits[0][valid], **CLOSE)
        own = grads(single, single.loss(one, mine), "*")
        mine_only = {n: g[i : i + 1] for n, g in got.items()}
        held = moved(mine_only, b, keep)
        assert held.keys() == own.keys()
        for name, grad in own.items():
            torch.testing.assert_close(held[name], grad, **CLOSE)
        for name, grad in mine_only.items():  # and nothing flows into blocks that the client lacks
            if not moved({name: grad}, b, keep):
                assert not grad.any(), name


@pytest.mark.parametrize(("kind", "rows"), [("deberta-v2", 32), ("llama", 7), ("bert", 7), ("gpt2", 7), ("bloom", 7)])
def test_tables_that_are_as_long_as_the_batch_has_rows_are_not_taken_for_rows(kind: str, rows: int) -> None:
    """DeBERTa hands its 2·16 relative positions to every block, LLaMA positions of a 7-token batch: 7 rows here, too."""
    b = tiny.backbone(kind)
    table = tiny.table(b, 64)
    same = np.flatnonzero(table.lengths <= 7)
    index = np.resize(same, rows)
    index[0] = np.flatnonzero(table.lengths == 7)[0] if kind != "deberta-v2" else index[0]
    bench = Bench(b, tiny.bench(kind).task, table, 0)
    parts = [{"head": Head()} for _ in range(rows)]
    values = [values_for(bench, p, seed=0) for p in parts]
    pack = pack_of(bench, parts, values)
    pack.hold(torch.tensor([[True, i % 2 == 0, True] for i in range(rows)]))
    out = pack(batch_of(bench, index[:, None])).logits[:, 0]
    short = Bench(shortened(b, [0, 2]), bench.task, table, 0)
    full = pack_of(bench, parts[:1], values[:1])(batch_of(bench, index[None])).logits[0]
    cut = pack_of(short, parts[:1], values[:1])(batch_of(short, index[None])).logits[0]
    expected = torch.where((torch.arange(rows) % 2 == 0)[:, None], full, cut)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_a_client_without_any_block_keeps_its_embeddings() -> None:
    bench = tiny.bench("distilbert")
    b = bench.backbone
    values = values_for(bench, {"head": Head()}, seed=0)
    pack = pack_of(bench, [{"head": Head()}] * 2, [values] * 2)
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
    pack = pack_of(bench, [{"head": Head()}], [values_for(bench, {"head": Head()}, seed=0)])
    with pytest.raises(WeftError, match="one block many times"):
        pack.hold(torch.ones(1, 1, dtype=torch.bool))
