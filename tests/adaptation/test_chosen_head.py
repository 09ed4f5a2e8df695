"""Several heads of one client, of which a pass names the one that works."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

import tiny
from weaving import CLOSE, INDEX, batch_of, leaves, own_model, pack_of, set_head, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import ChosenHead, Head
from weft.adaptation.part import Part

PARTS: Mapping[str, Part] = {"one": ChosenHead(), "two": ChosenHead(), "adapter": Bottleneck(8)}


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "vit"])
def test_a_pass_reads_the_head_that_it_names(kind: str) -> None:
    bench = tiny.bench(kind)
    values = [values_for(bench, PARTS, seed=i) for i in range(2)]
    pack, batch = pack_of(bench, [PARTS] * 2, values), batch_of(bench, INDEX[:2])
    for name in ("one", "two"):
        found = pack(batch, use={name: 1.0}).logits
        for k in range(2):
            model, rows = own_model(bench.backbone), INDEX[k][INDEX[k] >= 0]
            set_head(model, bench.backbone, values[k], name)
            wanted = model(**bench.backbone.to_model(bench.table.collate(rows))).logits
            torch.testing.assert_close(found[k, : len(rows)], wanted, **CLOSE)


def test_it_stands_in_for_a_head_that_is_always_on_and_learns_alone() -> None:
    bench = tiny.bench("bert")
    both: Mapping[str, Part] = {"head": Head(), "one": ChosenHead()}
    pack = leaves(pack_of(bench, [both], [values_for(bench, both, seed=0)]), "*")
    batch = batch_of(bench, INDEX[:1])
    for use, moved in (({"one": 1.0}, "one"), ({}, "head"), (None, "head")):
        loss = pack.loss(pack(batch, use=use), batch).sum()
        slopes = dict(zip(pack.tensors, torch.autograd.grad(loss, list(pack.tensors.values()), allow_unused=True), strict=True))
        assert {n.split("/")[0] for n, g in slopes.items() if g is not None} == {moved}
