"""Taps of a pack see what hooks on a model of one's own see, row by row: of every layer, and of a row's own tokens alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, batch_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods import FedIT
from weft.tasks.kinds import GENERATION, PREFERENCE

SCALE = 2.0
BARE: dict[str, Part] = {"head": Head()}
LORA = LoRA(2, 2 * SCALE, "ffn.in", blocks=(2,))
HIGH: dict[str, Part] = {"lora": LORA, "head": Head()}
KINDS = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert", "gpt2", "opt", "llama", "t5", "vit")
Sums = dict[str, list[Tensor]]
"""Layer -> for each client the sum of squares of its own rows, [d]."""


def layers(b: Backbone) -> list[str]:
    return [s.name for s in (*b.linears, *b.outer, *b.heads) if s.role != "head.norm" and s.per_row]


def packed(bench: Bench, parts: Mapping[str, Part]) -> tuple[Pack, list[Mapping[str, Any]]]:
    values: list[Mapping[str, Any]] = [values_for(bench, parts, seed=i) for i in range(3)]
    return pack_of(bench, [parts] * 3, values), values


def tapped(pack: Pack, index: np.ndarray, clients: list[int] | None = None, use: Mapping[str, float] | None = None) -> Sums:
    found: Sums = {n: [torch.zeros(0)] * 3 for n in layers(pack.backbone)}
    called: Counter[str] = Counter()

    def note(x: Tensor, own: Tensor, name: str) -> None:
        assert x.shape[:2] == index.shape
        assert own.shape == x.shape[:3]
        called[name] += 1
        squares = (x * own.unsqueeze(-1)).square().sum((1, 2)).detach()
        for k, value in zip(clients or range(3), squares, strict=True):
            found[name][k] = value + (found[name][k] if len(found[name][k]) else 0)

    with pack.tapped({n: partial(note, name=n) for n in found}):
        pack(batch_of(pack.bench, index, clients), {} if use is None else use)
    assert called.keys() == found.keys(), "a layer was skipped"
    return found


def by_hooks(bench: Bench, values: Mapping[str, Any], rows: list[int], part: LoRA | None = None) -> dict[str, Tensor]:
    """On a copy of the model, every row alone, so that nothing is padded."""
    model, found = own_model(bench.backbone), {}
    if bench.backbone.heads:
        set_head(model, bench.backbone, values)
    for site in () if part is None else part.sites(bench.backbone):
        change = SCALE * values[f"lora/{site.name}/B"] @ values[f"lora/{site.name}/A"]
        model.get_submodule(site.name).register_forward_hook(lambda _m, args, out, w=change: out + args[0] @ w.T)
    for name in layers(bench.backbone):

        def note(_m: Any, args: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = found.get(name, 0) + args[0].detach().flatten(0, -2).square().sum(0)

        model.get_submodule(name).register_forward_pre_hook(note)
    for row in rows:
        model(**bench.table.collate(np.array([row])))
    return found


def check(bench: Bench, found: Sums, index: np.ndarray, clients: list[int], values: Any, part: LoRA | None = None) -> None:
    for place, k in enumerate(clients):
        wanted = by_hooks(bench, values[k], [int(i) for i in index[place] if i >= 0], part)
        for name, sums in found.items():
            torch.testing.assert_close(sums[k], wanted[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_shows_the_own_tokens_of_every_row(kind: str, prefix: bool) -> None:
    bench = tiny.bench(kind, prefix=prefix)
    pack, values = packed(bench, BARE)
    pack(batch_of(bench, INDEX))  # fills the cache, from which a pass without taps would begin
    found = tapped(pack, INDEX)
    assert len(found) > 10 or kind == "albert"
    check(bench, found, INDEX, [0, 1, 2], values)
    if kind != "vit":
        assert len(set(bench.table.lengths[INDEX[INDEX >= 0]].tolist())) > 3


@pytest.mark.parametrize("prefix", [False, True])
def test_parts_at_work_change_what_goes_into_the_layers_above_them(prefix: bool) -> None:
    bench = tiny.bench("bert", prefix=prefix)
    pack, values = packed(bench, HIGH)
    pack(batch_of(bench, INDEX))
    check(bench, tapped(pack, INDEX, use={"lora": 1.0}), INDEX, [0, 1, 2], values, LORA)
    check(bench, tapped(pack, INDEX), INDEX, [0, 1, 2], values)


def test_a_client_that_has_left_the_batch_is_in_none_of_it() -> None:
    bench = tiny.bench("bert")
    pack, values = packed(bench, BARE)
    found = tapped(pack, INDEX[[0, 2]], [0, 2])
    check(bench, found, INDEX[[0, 2]], [0, 2], values)
    assert all(not len(sums[1]) for sums in found.values())


def test_of_a_model_that_writes_rows_are_seen_one_by_one_where_they_would_lie_in_lines() -> None:
    plain = tiny.federation(FedIT(rank=2), "llama", task=GENERATION).bench
    bench = replace(plain, sequence_packing=True)
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "q")}
    pack, values = packed(bench, parts)
    found = tapped(pack, INDEX)
    assert len(found) == 3 * 7, "the output layer is not among them"
    check(bench, found, INDEX, [0, 1, 2], values)


def test_a_row_of_preferences_is_seen_with_either_answer() -> None:
    bench = tiny.federation(FedIT(rank=2), "llama", task=PREFERENCE).bench
    pack, _ = packed(bench, {"lora": LoRA(2, 4.0, "q")})
    name, found = layers(bench.backbone)[0], []
    with pack.tapped({name: lambda x, own: found.append((x * own.unsqueeze(-1)).square().sum((2, 3)))}):
        pack(batch_of(bench, INDEX), {})
    model, wanted = own_model(bench.backbone), []
    model.get_submodule(name).register_forward_pre_hook(lambda _m, args: wanted.append(args[0].detach().square()))
    for row in INDEX.flatten():
        inputs = bench.table.collate(np.array([row]))
        model(**inputs)
        own = inputs["attention_mask"].unsqueeze(-1) * (row >= 0)
        wanted[-1] = (wanted[-1] * own).sum((1, 2))
    torch.testing.assert_close(found[0], torch.cat(wanted).view(3, 8), rtol=1e-11, atol=1e-11)
    assert bool((found[0][:, 0::2] != found[0][:, 1::2])[INDEX >= 0].all())


def test_where_rows_see_one_vector_alone_there_is_one() -> None:
    bench = tiny.bench("bert")
    pack, _ = packed(bench, BARE)
    seen: list[tuple[Tensor, Tensor]] = []
    with pack.tapped({"classifier": lambda x, own: seen.append((x, own))}):
        pack(batch_of(bench, INDEX))
    ((x, own),) = seen
    assert x.shape == (3, 4, 1, 32)
    assert torch.equal(own[..., 0], torch.from_numpy(INDEX >= 0))


def test_nothing_stays_of_taps_and_an_error_in_one_takes_them_off_too() -> None:
    bench = tiny.bench("bert", prefix=True)
    pack, _ = packed(bench, BARE)
    batch = batch_of(bench, INDEX)
    before, cut, hooks = pack(batch).logits, pack.cut(), list(tiny.hooks(bench.backbone.model))
    assert cut == 3
    torch.testing.assert_close(_tapped_logits(pack)[INDEX >= 0], before[INDEX >= 0], **CLOSE)
    assert (pack.cut(), list(tiny.hooks(bench.backbone.model))) == (cut, hooks)

    def broken(x: Tensor, own: Tensor) -> None:
        raise RuntimeError("of the function")

    with pytest.raises(RuntimeError, match="of the function"), pack.tapped({layers(bench.backbone)[0]: broken}):
        pack(batch)
    assert (pack.cut(), list(tiny.hooks(bench.backbone.model))) == (cut, hooks)
    assert torch.equal(pack(batch).logits, before)


def _tapped_logits(pack: Pack) -> Tensor:
    with pack.tapped({n: lambda x, own: None for n in layers(pack.backbone)}):
        assert pack.cut() == 0
        return pack(batch_of(pack.bench, INDEX)).logits


def test_what_is_not_of_the_rows_of_a_batch_is_refused() -> None:
    bench = tiny.bench("bert")
    pack, _ = packed(bench, BARE)
    one = {layers(bench.backbone)[0]: lambda x, own: None}
    with pytest.raises(WeftError, match="no linear layer"), pack.tapped({"bert.encoder": lambda x, own: None}):
        pass
    with pack.tapped(one), pytest.raises(WeftError, match="a text that is written"):  # noqa: SIM117
        with pack.reading({"input_ids": torch.zeros(12, 3, dtype=torch.long)}):
            pack(batch_of(bench, INDEX))
    with pack.tapped(one), pytest.raises(WeftError, match="being written"), pack.woven(None, 3, None):
        pass
    pack.hold(torch.tensor([[True, False, True]] * 3))
    with pack.tapped(one), pytest.raises(WeftError, match="those that skip some"):
        pack(batch_of(bench, INDEX))


def test_layers_that_see_more_than_rows_and_models_of_two_stacks_are_refused_in_a_sentence() -> None:
    bench = tiny.bench("deberta-v2")
    pack, _ = packed(bench, BARE)
    odd = [s.name for s in bench.backbone.linears if not s.per_row]
    assert odd
    with pytest.raises(UserError, match="for all rows at once too"), pack.tapped({odd[0]: lambda x, own: None}):
        pass
    tapped(pack, INDEX)
    bench = tiny.federation(FedIT(rank=2), "t5", task=GENERATION).bench
    pack, _ = packed(bench, {"lora": LoRA(2, 4.0, "q")})
    with pytest.raises(UserError, match="writes another"), pack.tapped({layers(bench.backbone)[0]: lambda x, own: None}):
        pass


def test_a_layer_that_is_called_with_other_rows_or_other_tokens_is_an_error() -> None:
    """As of a part that lays tokens of its own among those of a row."""
    bench = tiny.bench("bert")
    pack, _ = packed(bench, BARE)
    name = layers(bench.backbone)[0]
    block, layer = (bench.backbone.module(n) for n in (bench.backbone.blocks[0], name))

    def odd(h: Tensor, *_: Any, some: Any, **__: Any) -> Tensor:
        layer(h[some])
        return h

    for some, words in ((slice(5), "are not 12 rows"), ((slice(None), slice(2)), "2 tokens a row")):
        block.forward = partial(odd, some=some)
        try:
            with pack.tapped({name: lambda x, own: None}), pytest.raises(WeftError, match=words):
                pack(batch_of(bench, INDEX), {})
        finally:
            del block.forward
