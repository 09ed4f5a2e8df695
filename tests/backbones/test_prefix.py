"""Starting from cached hidden states gives what the whole model gives, for every cut, and steps aside where it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, grads, leaves, pack_of, values_for
from weft.adaptation.bias import Bias
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.federation.batch import make_batch
from weft.federation.bench import Bench
from weft.federation.pack import Pack

INDEX = np.array([[3, 0, 5, -1], [7, 7, 2, 9], [12, -1, -1, -1]])  # ragged, with padding rows, one row twice

KINDS = (
    *("bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert", "gpt2", "opt", "llama", "qwen2", "gemma", "phi"),
    "t5",
)


class Counter:
    """How often each block of a backbone has really run, and on how many tokens."""

    def __init__(self, b: Backbone):
        self.runs = [0] * len(b.blocks)
        self.handles = [b.module(n).register_forward_pre_hook(self._hook(i), with_kwargs=True) for i, n in enumerate(b.blocks)]
        inner = [next(s for s in b.linears if s.block == i).name for i in range(len(b.blocks))]
        self.inside = [0] * len(b.blocks)
        self.handles += [b.module(n).register_forward_pre_hook(self._deep(i)) for i, n in enumerate(inner)]

    def _hook(self, i: int) -> Any:
        def hook(_m: object, _a: object, _k: object) -> None:
            self.runs[i] += 1

        return hook

    def _deep(self, i: int) -> Any:
        def hook(_m: object, _a: object) -> None:
            self.inside[i] += 1

        return hook

    def close(self) -> None:
        for h in self.handles:
            h.remove()


def upper(b: Backbone, cut: int) -> dict[str, Part]:
    """LoRA on the blocks from ``cut`` on, and the head: what lies below is frozen."""
    ends = [s.name for s in b.linears if s.block is not None and s.block >= cut]
    return {"head": Head()} if not ends else {"lora": LoRA(2, 4.0, "names:" + ",".join(ends)), "head": Head()}


def passes(b: Backbone, parts: dict[str, Part], bench: Bench, index: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    k = len(index)
    values = [values_for(bench, parts, seed=i) for i in range(k)]
    pack = leaves(pack_of(bench, [parts] * k, values), "*")
    batch = make_batch(bench.task, bench.table, index, None, b.device)
    out = pack(batch)
    return out.logits, grads(pack, pack.loss(out, batch), "*")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_in_logits_and_gradients_for_every_cut(kind: str, cut: int, pairs: bool) -> None:
    bench = tiny.bench(kind, pairs=pairs)
    b = bench.backbone
    cached = replace(bench, prefix=PrefixCache(b))
    parts = upper(b, cut)
    expected, slopes = passes(b, parts, bench, INDEX)
    valid = INDEX >= 0
    for _ in range(2):  # the first time rows are computed, the second time they are only read
        counter = Counter(b)
        got, mine = passes(b, parts, cached, INDEX)
        counter.close()
        torch.testing.assert_close(got[valid], expected[valid], **CLOSE)
        assert bool(torch.isfinite(got).all())
        assert mine.keys() == slopes.keys()
        for name, grad in slopes.items():
            torch.testing.assert_close(mine[name], grad, **CLOSE)
    assert counter.inside[:cut] == [0] * cut
    assert all(counter.inside[cut:])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_what_stands_between_two_blocks_is_not_applied_twice(cut: int) -> None:
    """Large DeBERTas have a convolution after their first block."""
    b = tiny.backbone("deberta-v2", conv_kernel_size=3, conv_act="gelu")
    assert b.model.deberta.encoder.conv is not None
    bench = tiny.bench(b)
    parts = upper(b, cut)
    expected, _ = passes(b, parts, bench, INDEX)
    got, _ = passes(b, parts, replace(bench, prefix=PrefixCache(b)), INDEX)
    torch.testing.assert_close(got[INDEX >= 0], expected[INDEX >= 0], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "deberta-v2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_cache_keeps_the_precision_of_the_backbone(kind: str, precision: str) -> None:
    b = tiny.backbone(kind, precision=precision)
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b))
    parts = upper(b, 2)
    expected, _ = passes(b, parts, bench, INDEX)
    got, _ = passes(b, parts, cached, INDEX)
    tolerance = {"float32": 1e-5, "bfloat16": 0.15}[precision]  # logits are around 1; bfloat16 has 8 bits
    torch.testing.assert_close(got[INDEX >= 0], expected[INDEX >= 0], rtol=0.0, atol=tolerance)
    assert cached.prefix is not None
    assert {v.dtype for v in cached.prefix._rows[2].values() if isinstance(v, Tensor)} == {b.dtype}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta-v2", "albert", "roberta"])
def test_if_only_a_head_is_trained_one_token_a_row_is_kept(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    cached = replace(bench, prefix=PrefixCache(b))
    expected, slopes = passes(b, {"head": Head()}, bench, INDEX)
    passes(b, {"head": Head()}, cached, INDEX)
    counter = Counter(b)
    got, mine = passes(b, {"head": Head()}, cached, INDEX)
    counter.close()
    torch.testing.assert_close(got[INDEX >= 0], expected[INDEX >= 0], **CLOSE)
    for name, grad in slopes.items():
        torch.testing.assert_close(mine[name], grad, **CLOSE)
    assert not any(counter.inside)
    assert cached.prefix is not None
    (kept,) = cached.prefix._rows.values()
    assert {tuple(v.shape) for v in kept.values() if isinstance(v, Tensor)} == {(1, 32)}


def test_a_head_that_averages_tokens_keeps_them_all() -> None:
    b = tiny.backbone("modernbert", classifier_pooling="mean")
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b))
    expected, _ = passes(b, {"head": Head()}, bench, INDEX)
    got, _ = passes(b, {"head": Head()}, cached, INDEX)
    torch.testing.assert_close(got[INDEX >= 0], expected[INDEX >= 0], **CLOSE)
    assert cached.prefix is not None
    (kept,) = cached.prefix._rows.values()
    for row in INDEX[INDEX >= 0]:
        value = kept[int(row)]
        assert isinstance(value, Tensor)
        assert tuple(value.shape) == (bench.table.lengths[row], 32)


def test_a_fresh_pooler_is_part_of_the_head_and_reads_the_kept_token() -> None:
    b = tiny.backbone("bert", checkpoint="mlm")
    bench = tiny.bench(b)
    expected, slopes = passes(b, {"head": Head()}, bench, INDEX)
    got, mine = passes(b, {"head": Head()}, replace(bench, prefix=PrefixCache(b)), INDEX)
    torch.testing.assert_close(got[INDEX >= 0], expected[INDEX >= 0], **CLOSE)
    for name, grad in slopes.items():
        torch.testing.assert_close(mine[name], grad, **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_rows_beyond_the_memory_limit_come_back_from_the_file_bit_for_bit(kind: str, precision: str) -> None:
    b = tiny.backbone(kind, precision=precision)
    bench = tiny.bench(b)
    roomy, tight, none = PrefixCache(b), PrefixCache(b, memory=2000), PrefixCache(b, memory=0)
    index = np.arange(len(bench.table))
    for cut in (1, 2, 3):
        _, expected = roomy.gather(bench.table, index, cut)
        for cache in (tight, none):
            for _ in range(2):
                _, got = cache.gather(bench.table, index[::-1].copy(), cut)
                assert torch.equal(got.flip(0), expected)
    assert roomy._file is None
    assert tight._file is not None
    assert 0 < tight.used <= 2000
    assert none.used == 0


def test_another_table_never_gets_the_rows_of_the_first() -> None:
    b = tiny.backbone("bert")
    cache = PrefixCache(b)
    one, two = tiny.table(b, 12, seed=0), tiny.table(b, 12, seed=1)
    for table in (one, two, one):
        _, got = cache.gather(table, np.arange(12), 2)
        _, expected = PrefixCache(b).gather(table, np.arange(12), 2)
        assert torch.equal(got, expected)


def test_what_a_row_holds_does_not_depend_on_what_was_asked_for_first() -> None:
    b = tiny.backbone("bert", precision="float32")
    table = tiny.table(b, 40)
    forward, backward, single = PrefixCache(b), PrefixCache(b), PrefixCache(b)
    _, a = forward.gather(table, np.arange(40), 2)
    for i in reversed(range(40)):
        backward.gather(table, np.array([i]), 2)
    single.gather(table, np.array([17, 3]), 2)
    assert torch.equal(backward.gather(table, np.arange(40), 2)[1], a)
    assert torch.equal(single.gather(table, np.arange(40), 2)[1], a)


# the cut --------------------------------------------------------------------------------------------------------------


def cut_of(b: Backbone, parts: dict[str, Part]) -> int:
    bench = replace(tiny.bench(b), prefix=PrefixCache(b))
    return pack_of(bench, [parts], [values_for(bench, parts, seed=0)]).cut()


def test_the_cut_is_the_lowest_block_of_any_part_frozen_ones_too() -> None:
    b = tiny.backbone("bert")
    at = {i: "names:" + b.blocks[i].removeprefix("bert.") + ".attention.self.query" for i in range(3)}
    assert cut_of(b, {"head": Head()}) == 3
    assert cut_of(b, {"lora": LoRA(1, 1.0, at[2]), "head": Head()}) == 2
    assert cut_of(b, {"lora": LoRA(1, 1.0, at[2]), "base": Delta(at[1]), "head": Head()}) == 1
    assert cut_of(b, {"lora": LoRA(1, 1.0, at[0]), "head": Head()}) == 0
    assert cut_of(b, {"x": Bottleneck(), "head": Head()}) == 0
    assert cut_of(b, {"bias": Bias("all"), "head": Head()}) == 0  # the embedding norm lies below every block


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_layer_subsets_never_start_from_the_cache(kind: str) -> None:
    """A client without block 0 has other hidden states above it than the cache."""
    bench = tiny.bench(kind)
    b = bench.backbone
    cached = replace(bench, prefix=PrefixCache(b))
    parts = upper(b, 2)
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    hold = torch.tensor([[False, True, True], [True, True, True], [True, False, True]])
    batch = make_batch(bench.task, bench.table, INDEX, None, b.device)

    def gated(of: Bench) -> Pack:
        pack = pack_of(of, [parts] * 3, values)
        pack.hold(hold)
        return pack

    expected = gated(bench)(batch).logits
    pack = gated(cached)
    torch.testing.assert_close(pack(batch).logits, expected, **CLOSE)
    assert pack.cut() == 0
    pack.hold(None)  # and back
    plain = pack_of(bench, [parts] * 3, values)(batch).logits
    torch.testing.assert_close(pack(batch).logits[INDEX >= 0], plain[INDEX >= 0], **CLOSE)


def test_one_shared_block_is_cached_only_if_no_part_sits_in_it() -> None:
    b = tiny.backbone("albert")
    assert cut_of(b, {"lora": LoRA(1, 1.0, "q"), "head": Head()}) == 0
    assert cut_of(b, {"head": Head()}) == 1


def test_a_whole_run_is_the_same_with_and_without_the_cache() -> None:
    from weft.adaptation.optim import Optim
    from weft.methods.reparameterized.fedit import FedIT

    b = tiny.backbone("bert")
    sites = f"names:{b.blocks[2].removeprefix('bert.')}.attention.self.query"
    method = FedIT(rank=2, alpha=4.0, sites=sites, batch=4, optim=Optim(lr=1e-2))
    plain = tiny.federation(method, b).run()
    cached = tiny.federation(method, b, prefix=True).run()
    assert cached.bench.prefix is not None
    assert set(cached.bench.prefix._rows) == {2}
    for name, value in plain.server.shared.items():
        torch.testing.assert_close(cached.server.shared[name], value, **CLOSE)
