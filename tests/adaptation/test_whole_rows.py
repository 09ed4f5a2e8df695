"""Parts that look at whole rows are told which tokens are theirs, in every kind of pass; elsewhere they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Additive, Part
from weft.adaptation.row_tokens import row_tokens, spread
from weft.adaptation.soft_words import SoftWords
from weft.adaptation.tokens import ImageTokens
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.errors import UserError, WeftError
from weft.federation import generating
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import GENERATION, PREFERENCE
from weft.tensors.init import Init


@dataclass(frozen=True)
class RowMean(Additive):
    """x + shift · (the mean of x over the tokens of its row)."""

    at: str = "o,ffn.out"
    whole_rows: ClassVar[bool] = True

    def sites(self, backbone: Backbone) -> list[Site]:
        return backbone.sites(self.at)

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return {"shift": Init((site.d_out,))}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        own = w["own"]
        assert own.dtype == torch.bool
        s, each = out.unflatten(1, own.shape[1:]), own.unsqueeze(-1)
        mean = (s * each).sum(2, keepdim=True) / each.sum(2, keepdim=True).clamp(min=1)
        return (w["shift"].view(len(own), 1, 1, -1) * mean).expand_as(s).flatten(1, 2)


PARTS: dict[str, Part] = {"mean": RowMean(), "head": Head()}
KINDS = ("bert", "roberta", "distilbert", "albert", "modernbert", "deberta-v2", "gpt2", "llama", "t5", "vit")


def by_hand(bench: Bench, values: Mapping[str, Any], row: int, skip: set[int] = frozenset()) -> Tensor:  # type: ignore[assignment]
    """Logits of one row alone, in which nothing is padded, by a copy of the model."""
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    for site in RowMean().sites(bench.backbone):
        shift = values[f"mean/{site.name}/shift"]

        def after(_m: Any, _a: Any, out: Tensor, shift: Tensor = shift) -> Tensor:
            return out + shift * out.flatten(0, -2).mean(0)

        model.get_submodule(site.name).register_forward_hook(after)
    return logits_of(model, bench, np.array([row]))[0]


def packed(bench: Bench, parts: Mapping[str, Part] = PARTS) -> tuple[Pack, list[Mapping[str, Any]]]:
    values: list[Mapping[str, Any]] = [values_for(bench, parts, seed=i) for i in range(3)]
    return pack_of(bench, [parts] * 3, values), values


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_pack_sees_the_mean_of_its_own_tokens(kind: str) -> None:
    bench = tiny.bench(kind)
    pack, values = packed(bench)
    for index, clients in ((INDEX, None), (INDEX[[2, 0]], [2, 0])):
        out = pack(batch_of(bench, index, clients)).logits
        for place, k in enumerate(clients or range(3)):
            for j, row in enumerate(index[place]):
                if row >= 0:
                    torch.testing.assert_close(out[place, j], by_hand(bench, values[k], int(row)), **CLOSE)
    if kind != "vit":
        assert len(set(bench.table.lengths[INDEX[INDEX >= 0]].tolist())) > 3


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_rows_that_skip_blocks_and_blocks_computed_once_more_see_theirs(kind: str) -> None:
    bench = tiny.bench(kind)
    parts: list[Mapping[str, Part]] = [PARTS] * 3
    values = [values_for(bench, p, seed=i) for i, p in enumerate(parts)]
    hold = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    found = []
    for recompute in (False, True):
        pack = leaves(pack_of(replace(bench, recompute=recompute), parts, values), "*")
        pack.hold(hold)
        batch = batch_of(bench, INDEX)
        out = pack(batch)
        found.append((out.logits, grads(pack, pack.loss(out, batch), "*")))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(g, found[1][1][n]) for n, g in found[0][1].items())
    for k, one in enumerate(alone(bench, parts, values)):
        one.hold(hold[k : k + 1])
        for j, row in enumerate(INDEX[k]):
            if row >= 0:
                own = one(batch_of(bench, np.array([[row]]))).logits[0, 0]
                torch.testing.assert_close(found[0][0][k, j], own, **CLOSE)
    plain = pack_of(bench, parts, values)(batch_of(bench, INDEX)).logits
    assert not torch.allclose(plain[0], found[0][0][0])


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_pass_that_begins_at_what_is_cached_sees_the_same(kind: str) -> None:
    high = RowMean("names:" + ",".join(s.name for s in tiny.backbone(kind).sites("ffn.out") if s.block == 2))
    parts = {"mean": high, "head": Head()}
    found = []
    for prefix in (False, True):
        bench = tiny.bench(kind, prefix=prefix)
        pack, _ = packed(bench, parts)
        assert pack.cut() == (2 if prefix else 0)
        found.append(pack(batch_of(bench, INDEX)).logits)
    valid = INDEX >= 0
    torch.testing.assert_close(found[0][valid], found[1][valid], **CLOSE)


# language models --------------------------------------------------------------------------------------------------------


def writing(kind: str = "llama", task: Any = GENERATION) -> tuple[Bench, tiny.Federation]:
    run = tiny.federation(FedIT(rank=2), kind, task=task, sizes=(6, 6, 6))
    return run.bench, run


LM: dict[str, Part] = {"mean": RowMean()}


@pytest.mark.parametrize("task", [GENERATION, PREFERENCE])
def test_rows_of_a_decoder_keep_apart_and_see_their_own_tokens(task: Any) -> None:
    bench, _ = writing(task=task)
    index = np.array([[0, 1], [6, -1], [12, 13]])
    values = [values_for(bench, LM, seed=i) for i in range(3)]
    pack = pack_of(replace(bench, sequence_packing=task == GENERATION), [LM] * 3, values)
    out, batch = pack(batch_of(bench, index)), batch_of(bench, index)
    loss = pack.loss(out, batch)
    for k, one in enumerate(alone(bench, [LM] * 3, values)):
        own = [batch_of(bench, np.array([[row]])) for row in index[k] if row >= 0]
        losses = torch.stack([one.loss(one(b), b)[0] for b in own])
        weights = torch.tensor([float(b.mask.sum()) if task == GENERATION else 1.0 for b in own], dtype=torch.float64)
        torch.testing.assert_close(loss[k], (losses * weights).sum() / weights.sum(), **CLOSE)
    if task == GENERATION:
        lora: dict[str, Part] = {"lora": LoRA(2, 2.0, "q")}
        lined = pack_of(replace(bench, sequence_packing=True), [lora], [values_for(bench, lora, seed=0)])
        assert lined._in_lines(batch, None)
        assert not pack._in_lines(batch, None)


@contextmanager
def hooked(bench: Bench, values: Mapping[str, Any]) -> Any:
    handles = []
    for site in RowMean().sites(bench.backbone):
        shift = values[f"mean/{site.name}/shift"]
        module = bench.backbone.module(site.name)
        handles.append(module.register_forward_hook(lambda _m, _a, out, s=shift: out + s * out.mean(1, keepdim=True)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def written(bench: Bench, values: Mapping[str, Any], row: int, tokens: int) -> str:
    """Greedily, by whole passes over all that is written so far."""
    table = bench.table
    assert hasattr(table, "prompts")
    ids = table.prompts(np.array([row]))["input_ids"]
    width = ids.shape[1]
    with hooked(bench, values):
        for _ in range(tokens):
            following = bench.backbone.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
            if int(following) == bench.backbone.tokenizer.eos_token_id:
                break
    text: str = bench.backbone.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)[0]
    return text.strip()


def test_what_is_written_sees_all_that_is_written_so_far() -> None:
    bench, run = writing()
    values = [values_for(bench, LM, seed=i) for i in range(3)]
    pack = pack_of(bench, [LM] * 3, values)
    rows = [np.array([0, 9]), np.array([1, 3]), np.array([5])]
    for beams in (1, 3):
        texts = generating.write(pack, run.method.forward, rows, Decoding(new_tokens=6, beams=beams))
        single = [
            generating.write(one, run.method.forward, [own], Decoding(new_tokens=6, beams=beams))[0]
            for one, own in zip(alone(bench, [LM] * 3, values), rows, strict=True)
        ]
        assert texts == single
        if beams == 1:
            assert texts == [[written(bench, v, int(i), 6) for i in own] for v, own in zip(values, rows, strict=True)]
            assert len({t for own in texts for t in own}) > 1


# refusals ---------------------------------------------------------------------------------------------------------------


def test_a_pass_that_knows_no_rows_is_refused() -> None:
    bench, _ = writing()
    pack = pack_of(bench, [LM], [values_for(bench, LM, seed=0)])
    with pytest.raises(WeftError, match="does not tell which tokens"), pack.woven(None, 1, None):
        bench.backbone.model(**bench.table.collate(np.array([0])))
    assert list(tiny.hooks(bench.backbone.model)) == []


def test_an_encoder_decoder_is_refused() -> None:
    bench, _ = writing("t5")
    pack = pack_of(bench, [LM], [values_for(bench, LM, seed=0)])
    with pytest.raises(UserError, match="reads a row and writes another"):
        pack(batch_of(bench, INDEX[:1]))


@pytest.mark.parametrize(("kind", "other"), [("bert", SoftWords(2)), ("vit", ImageTokens(2))])
def test_tokens_of_other_parts_among_a_rows_are_refused(kind: str, other: Part) -> None:
    bench = tiny.bench(kind)
    parts = {**PARTS, "others": other}
    pack, _ = packed(bench, parts)
    with pytest.raises(UserError, match='"mean" looks at whole rows, and "others" puts tokens among theirs: leave one'):
        pack(batch_of(bench, INDEX))
    pack(batch_of(bench, INDEX), {"others": 1.0})
    pack(batch_of(bench, INDEX), {"mean": 1.0})


def test_tokens_that_a_method_puts_among_a_rows_are_refused() -> None:
    bench = tiny.bench("vit")
    pack, _ = packed(bench)
    with pytest.raises(UserError, match="the method puts tokens among theirs"):
        pack(batch_of(bench, INDEX), insert={1: torch.zeros(3, 4, 2, 32, dtype=torch.float64)})


def test_a_layer_that_sees_something_else_than_rows_is_refused() -> None:
    bench = tiny.bench("deberta-v2")
    parts = {"mean": RowMean("k"), "head": Head()}
    pack, _ = packed(bench, parts)
    with pytest.raises(UserError, match="sees something else than their tokens: choose another --model"):
        pack(batch_of(bench, INDEX))


# the tokens themselves --------------------------------------------------------------------------------------------------


def test_tokens_of_rows_are_those_that_are_neither_padding_nor_of_padding_rows() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    index = np.array([[4, -1], [7, 8]])
    own = row_tokens(tiny.backbone("bert"), {"input_ids": torch.zeros(4, 3), "attention_mask": mask}, index)
    assert own.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 0]]]
    twice = row_tokens(tiny.backbone("bert"), {"attention_mask": mask}, np.array([[4], [-1]]))
    assert twice.int().tolist() == [[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    pictures = row_tokens(tiny.backbone("bert"), {"pixel_values": torch.zeros(4, 3, 8, 8)}, index)
    assert pictures.tolist() == [[True, False], [True, True]]
    there = spread(pictures, 6)
    assert there is not None
    assert there.int().tolist() == [[[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]]
    assert spread(pictures, 5) is None
    assert spread(own, 6) is own
    assert spread(own, 8) is None
