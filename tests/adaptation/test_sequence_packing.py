"""Rows of a client that share a line give the same losses and gradients as rows apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.backbones import lines
from weft.backbones.reply_table import Replies
from weft.backbones.run_table import Table
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.rules import with_options
from weft.tasks.kinds import GENERATION

INDEX = np.array([[0, 1, 2, 3], [6, 7, 8, -1], [12, 13, -1, -1]])
PARTS: dict[str, Part] = {
    "lora": LoRA(2, 4.0, "all"),
    "x": Bottleneck(8),
    "beside": Bottleneck(8, placement="parallel"),
    "delta": Delta("q"),
    "prefix": Prefix(2),
}
KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "phi", "olmo2"]
REFUSED = ["bloom", "opt", "falcon"]  # they make masks, or positions, of the padding alone


def ragged(like: Table) -> Replies:
    """As many rows, of 3 to 20 tokens, of which some in the middle and the last are to be predicted."""
    assert isinstance(like, Replies)
    rng = np.random.default_rng(0)
    widths = rng.integers(3, 21, len(like))
    answer = rng.random(widths.sum()) < 0.5
    answer[np.cumsum(widths) - 1] = True
    answer[np.cumsum(widths) - widths] = False
    ids = rng.integers(5, 90, widths.sum()).astype(np.int32)
    return replace(like, ids=ids, offsets=np.concatenate([[0], np.cumsum(widths)]), answer=answer)


def bench_of(kind: str) -> Bench:
    bench = tiny.federation(FedIT(rank=2), kind, task=GENERATION, sizes=(6, 6, 6)).bench
    return replace(bench, table=ragged(bench.table)) if type(bench.table) is Replies else bench


def pair(bench: Bench, recompute: bool = False, hold: Tensor | None = None) -> tuple[Pack, Pack]:
    """Rows apart, and rows in lines."""
    parts = PARTS if bench.backbone.kind != "gemma2" else {n: p for n, p in PARTS.items() if n != "prefix"}
    # gemma2 takes its softmax in float32, whose last bits depend on what a score stands next to
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    found = []
    for on in (False, True):
        pack = leaves(pack_of(replace(bench, sequence_packing=on, recompute=recompute), [parts] * 3, values), "*")
        pack.hold(hold)
        found.append(pack)
    return found[0], found[1]


def assert_same(packs: tuple[Pack, Pack], index: np.ndarray = INDEX, clients: list[int] | None = None) -> None:
    found = []
    for pack in packs:
        batch = batch_of(pack.bench, index, clients)
        loss = pack.loss(pack(batch), batch)
        found.append((loss, grads(pack, loss, "*")))
    (loss, slopes), (lined, others) = found
    assert not bool((loss == 0).any())
    torch.testing.assert_close(lined, loss, **CLOSE)
    assert slopes.keys() == others.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(others[name], slope, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_rows_apart(kind: str) -> None:
    bench = bench_of(kind)
    lines.check(bench.backbone, bench.table)
    assert_same(pair(bench))
    assert_same(pair(bench), INDEX[[2, 0]], [2, 0])


def test_it_goes_with_blocks_that_clients_lack_and_with_blocks_computed_once_more() -> None:
    bench = bench_of("llama")
    hold = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    assert_same(pair(bench, hold=hold))
    assert_same(pair(bench, recompute=True))


def test_a_sliding_window_goes_no_further_than_the_row() -> None:
    bench = bench_of("mistral")
    config = bench.backbone.model.config
    window, config.sliding_window = config.sliding_window, 3
    try:
        assert int(bench.table.lengths.max()) > 3
        assert_same(pair(bench))
    finally:
        config.sliding_window = window


def test_lines_hold_each_row_once_and_none_is_longer_than_the_longest_row() -> None:
    table = bench_of("llama").table
    assert isinstance(table, Replies)
    inputs, places, order = lines.lines(table, INDEX)
    ids, positions = inputs["input_ids"], inputs["position_ids"]
    assert ids.shape[1] <= table.widths.max()
    assert ids.shape[0] % 3 == 0
    assert ids.numel() < table.collate(INDEX.reshape(-1))["input_ids"].numel()
    labels, mask = table.targets(INDEX.reshape(-1))
    following = torch.roll(ids, -1, 1)  # what a place predicts stands after it
    assert torch.equal(following[places][order], labels[mask])
    count = ids.shape[0] // 3
    for i, own in enumerate(INDEX):  # the client's lines are its rows, and padding of which each token is at position 0
        found = []
        for line, at in zip(ids[i * count : (i + 1) * count], positions[i * count : (i + 1) * count], strict=True):
            starts = (at == 0).nonzero().flatten().tolist()
            found += [line[a:b].tolist() for a, b in itertools.pairwise([*starts, len(at)])]
        wanted = [table.ids[table.offsets[r] : table.offsets[r + 1]].tolist() for r in own[own >= 0]]
        assert sorted(row for row in found if row != [table.pad]) == sorted(wanted)


def test_lines_are_of_nearly_equal_length() -> None:
    table = bench_of("llama").table
    assert isinstance(table, Replies)
    even = replace(
        table, ids=np.full(4 * 40, 7, np.int32), offsets=np.arange(41) * 4, answer=np.tile([False, True, True, True], 40)
    )
    even = replace(even, ids=np.append(even.ids, np.full(12, 7, np.int32)), offsets=np.append(even.offsets, 172))
    even = replace(even, answer=np.append(even.answer, np.arange(12) > 0))
    inputs, _, _ = lines.lines(even, np.arange(6)[None])
    assert inputs["input_ids"].shape == (2, 12)
    inputs, _, _ = lines.lines(even, np.arange(4)[None])
    assert inputs["input_ids"].shape == (2, 8)  # 12 + 4 would be no fewer lines
    inputs, _, _ = lines.lines(even, np.array([[0, 1, 40]]))
    assert inputs["input_ids"].shape == (2, 12)  # the longest row is the first that gets its place


def test_weights_of_single_rows_keep_them_apart() -> None:
    bench = bench_of("llama")
    plain, lined = pair(bench)
    weight = torch.rand(3, 4, dtype=torch.float64)
    batch = batch_of(bench, INDEX)
    assert torch.equal(plain.loss(plain(batch, {"lora": weight}), batch), lined.loss(lined(batch, {"lora": weight}), batch))


@pytest.mark.parametrize("average", ["tokens", "examples"])
def test_a_run_ends_with_the_same_values(average: str) -> None:
    found = []
    for on in (False, True):
        run = tiny.federation(FedIT(rank=2), "llama", task=GENERATION, sizes=(5, 4, 3), pack=3, rounds=2)
        run.bench.sequence_packing, run.bench.table = on, ragged(run.bench.table)
        run.bench.task = replace(run.bench.task, average=average)  # type: ignore[type-var]
        found.append(dict(run.run().server.shared))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, **CLOSE)


def test_rows_of_which_something_is_dropped_lie_apart() -> None:
    """In a line they would have no masks of their own."""
    found = []
    for on in (False, True):
        method = with_options(FedIT(rank=2, batch=3), LoRAOptions(dropout=0.5))
        run = tiny.federation(method, "llama", task=GENERATION, sizes=(5, 4, 3), pack=3, rounds=2)
        run.bench.sequence_packing, run.bench.table = on, ragged(run.bench.table)
        found.append(dict(run.run().server.shared))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, **CLOSE)


def test_who_does_not_look_at_positions_alone_is_refused() -> None:
    for kind in REFUSED:
        bench = bench_of(kind)
        with pytest.raises(UserError, match="does not keep rows apart that share a line: leave out --sequence-packing"):
            lines.check(bench.backbone, bench.table)
        half = tiny.backbone(kind, checkpoint="lm", task=GENERATION, precision="bfloat16")
        with pytest.raises(UserError, match="does not keep rows apart"):
            lines.check(half, bench.table)
    lines.check(tiny.backbone("llama", checkpoint="lm", task=GENERATION, precision="bfloat16"), bench_of("llama").table)
    for kind in ("bart", "t5"):
        other = bench_of(kind)
        with pytest.raises(UserError, match="for --task generation with a decoder"):
            lines.check(other.backbone, other.table)
    plain = tiny.bench("bert")
    with pytest.raises(UserError, match="for --task generation with a decoder"):
        lines.check(plain.backbone, plain.table)


def test_every_decoder_is_tried_here() -> None:
    assert set(KINDS) | set(REFUSED) == {*tiny.DECODERS, "falcon", "olmo2", "gemma2"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_whose_rows_hardly_see_each_other_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.backbone("llama", checkpoint="lm", task=GENERATION, precision=precision)
    whole = backbone.model.forward

    def leaking(input_ids: Tensor, **given: Any) -> Any:
        found = whole(input_ids=input_ids, **given)
        found.logits = found.logits + 1e-3 * found.logits.abs().max() * (input_ids[:, :1, None] % 5)
        return found

    def counting(input_ids: Tensor, **given: Any) -> Any:
        found = whole(input_ids=input_ids, **given)
        found.logits = found.logits + found.logits.abs().max() * torch.arange(input_ids.shape[1])[:, None]
        return found

    lines.check(backbone, bench_of("llama").table)
    for forward in (leaking, counting):
        monkeypatch.setattr(backbone.model, "forward", forward)
        with pytest.raises(UserError, match="does not keep rows apart"):
            lines.check(backbone, bench_of("llama").table)


def test_the_model_sees_less_padding() -> None:
    bench, seen = bench_of("llama"), []
    packs = pair(bench)  # whose start values ask the model too, once for each backbone
    words = bench.backbone.model.get_input_embeddings()
    handle = words.register_forward_hook(lambda _m, args, _out: seen.append(args[0].numel()))
    try:
        for pack in packs:
            pack(batch_of(pack.bench, INDEX))
    finally:
        handle.remove()
    assert seen[1] < seen[0]
