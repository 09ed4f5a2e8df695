"""Who shares a pass, and what it is reckoned to take."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

import tiny
from weft.engines import packing
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.message import ClientInfo
from weft.federation.rounds import adapted
from weft.methods.full.fedavg import FedAvg
from weft.methods.prompts.promptfl import PromptFL
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.reparameterized.flora import FLoRA
from weft.tasks.kinds import GENERATION


def language(kind: str = "llama", precision: str = "float64") -> Bench:
    return tiny.federation(FedIT(rank=2), kind, task=GENERATION, precision=precision).bench


def holding(lengths: np.ndarray, sizes: list[int]) -> list[ClientState]:
    """Clients of these sizes: the first has the shortest rows, the second the longest, the third the next shortest …"""
    order, empty = np.argsort(lengths, kind="stable"), np.zeros(0, np.int64)
    found = []
    for i, n in enumerate(sizes):
        rows, order = (order[:n], order[n:]) if i % 2 == 0 else (order[-n:], order[:-n])
        found.append(ClientState(f"c{i}", n, data=Splits(rows, empty, empty)))
    return found


def test_clients_of_a_language_model_share_a_pass_with_those_whose_rows_are_as_long() -> None:
    bench = language()
    widths = np.random.default_rng(0).permutation(np.arange(4, 4 + len(bench.table)))
    bench.table = replace(bench.table, offsets=np.concatenate([[0], np.cumsum(widths)]))
    clients = holding(bench.table.lengths, [4, 4, 4, 4, 4, 4])
    packs = packing.group(clients, 3, bench)
    assert [{c.id for c in pack} for pack in packs] == [{"c1", "c3", "c5"}, {"c0", "c2", "c4"}]
    few = holding(bench.table.lengths, [16, 4, 15, 4])
    assert [{c.id for c in pack} for pack in packing.group(few, 2, bench)] == [{"c0", "c2"}, {"c1", "c3"}]


def test_others_are_grouped_by_their_numbers_of_rows() -> None:
    bench = tiny.bench("bert")
    clients = holding(bench.table.lengths, [3, 5, 4, 4])
    assert [[c.id for c in pack] for pack in packing.group(clients, 2, bench)] == [["c1", "c2"], ["c3", "c0"]]


def test_an_estimate_of_a_language_model_knows_its_vocabulary_its_heads_and_recomputation() -> None:
    method, bench = FedIT(rank=2, batch=4), language()
    usual = packing.estimate(bench, method, 1000, 32)
    again = packing.estimate(replace(bench, recompute=True), method, 1000, 32)
    assert usual.fixed == again.fixed == sum(p.numel() * p.element_size() for p in bench.backbone.model.parameters())
    assert usual.trained == 4000
    assert usual.logits == again.logits == 3 * (1 << 23) // 100 * 100 * 8  # rows of 100 logits, and two temporaries
    assert again.kept == 3 * 128 * 32 * 8  # what goes into each of three blocks
    block = 128 * ((4 + 2 * 0.5) * 32 + 4 * 64 + 2 * 32) * 8  # of heads, half are of keys and values
    assert usual.kept == 3 * block
    assert again.work - usual.work == 2 * block  # on a CPU, the one above it has left a hole
    double = packing.estimate(bench, method, 1000, 64)
    assert (double.kept, double.work) == (2 * usual.kept, 2 * usual.work)  # attention keeps no scores [T, T]


def test_an_estimate_knows_a_feed_forward_without_a_gate_and_an_output_layer_that_is_no_product() -> None:
    method = FedIT(rank=2, batch=4)
    plain, capped = (packing.estimate(language(kind), method, 1000, 32) for kind in ("phi", "gemma2"))
    assert plain.kept == 3 * 128 * (6 * 32 + 3 * 64 + 2 * 32) * 8
    share = language("gemma2").table.answer.mean()  # type: ignore[union-attr]
    assert 0 < share < 1
    assert capped.logits == 0
    assert capped.kept == 3 * 128 * (5 * 32 + 4 * 64 + 2 * 32) * 8 + 3 * math.ceil(share * 128) * 100 * 8


def test_holes_of_the_allocator_are_reckoned_with_in_single_precision_on_a_cpu() -> None:
    found = packing.estimate(language(precision="float32"), FedIT(rank=2, batch=4), 1000, 32)
    assert found.kept == int(1.35 * 3 * 128 * (5 * 32 + 4 * 64 + 2 * 32) * 4)


def test_an_estimate_of_an_encoder_counts_every_block_its_scores_and_recomputation() -> None:
    """Of each block ten tensors of d and three of the feed-forward for each token, and three of scores [heads, T, T] a row."""
    method, bench = FedIT(rank=2, batch=4), tiny.bench("bert")
    block = 128 * (10 * 32 + 3 * 64) + 3 * 4 * 4 * 32 * 32
    assert packing.estimate(bench, method, 1000, 32).kept == 3 * block * 8
    again = packing.estimate(replace(bench, recompute=True), method, 1000, 32)
    assert again.kept == (3 * 128 * 32 + block) * 8  # what goes into each of three blocks, and one of them whole


def test_a_pass_is_reckoned_as_wide_as_the_longest_rows_but_for_one_in_twenty() -> None:
    method, bench = FedIT(rank=2, batch=4), tiny.bench("bert")
    n = len(bench.table)
    for long, width in ((math.ceil(n / 10), 30), (n // 30, 10)):
        lengths = np.where(np.arange(n) < long, 30, 10)
        bench.table = replace(bench.table, offsets=np.concatenate([[0], np.cumsum(lengths)]))
        found = packing.of_adaptation(bench, method, adapted(method, bench, ClientInfo("")))
        assert found.kept == packing.estimate(bench, method, 1, width).kept


def test_an_estimate_counts_every_block_of_a_text_tower_with_a_part_in_it_for_every_class() -> None:
    method, bench = PromptFL(), tiny.bench("clip")
    names, config = bench.backbone.names, bench.backbone.model.config.text_config
    assert names is not None
    assert config.num_hidden_layers > 1
    assert len(names.names) > 1
    length = min(names.limit, 32)
    block = length * (10 * config.hidden_size + 3 * config.intermediate_size) + 3 * config.num_attention_heads * length**2
    pictures, both = (packing.estimate(bench, method, 1000, 17, texts).kept for texts in (False, True))
    assert both - pictures == config.num_hidden_layers * len(names.names) * block * 8
    assert packing.of_adaptation(bench, method, adapted(method, bench, ClientInfo(""))).kept == (
        packing.estimate(bench, method, 1, int(np.quantile(bench.table.lengths, 0.95)), True).kept
    )


def test_a_language_model_of_whole_weights_keeps_a_copy_of_them_in_its_precision() -> None:
    bench = language(precision="bfloat16")
    thin, whole = (packing.estimate(bench, FedAvg(), 1000, 32, whole=w).kept for w in (False, True))
    assert whole - thin == 2 * 1000


def test_what_a_server_sums_up_and_clients_only_receive_is_not_trained() -> None:
    """FLoRA's clients add a product of all earlier factors to the frozen weights, which no optimizer holds."""
    method, bench = FLoRA(rank=2, sites="q"), tiny.bench("bert")
    guess = packing.of_adaptation(bench, method, adapted(method, bench, ClientInfo("")))
    assert guess.trained == 4 * (3 * (2 * 32 + 2 * 32) + 32 * 3 + 3)


def test_workers_share_a_cohort() -> None:
    setup = tiny.federation(FedIT(rank=2, batch=1), participation=0.7).simulation.setup
    memory = 1 << 40
    assert [packing.capacity(setup, memory, workers).k for workers in (1, 2, 3, 4)] == [4, 2, 2, 1]


def test_packs_take_six_tenths_of_the_memory_and_are_equal() -> None:
    guess, bench = packing.Estimate(fixed=10, trained=0, kept=10, available=120), tiny.bench("bert")
    assert [packing.choose("auto", cohort, 1, 1, guess, bench) for cohort in (1, 6, 7, 8, 13)] == [1, 6, 4, 4, 5]
    assert packing.choose("3", 9, 1, 1, guess, bench) == 3


def test_the_worst_moment_counts() -> None:
    guess = packing.Estimate(fixed=1000, trained=10, kept=50, available=0, work=20, logits=90)
    assert [guess.total(k) for k in (1, 4, 5)] == [1000 + 30 + 50 + 90, 1000 + 120 + 200 + 90, 1000 + 150 + 250 + 100]
    assert replace(guess, reused=False).total(2) == 1000 + 90 + 2 * (30 + 2 * 10 + 50 + 20)
    assert replace(guess, kept=5, logits=0).total(2) == 1000 + 60 + 2 * (10 + 20)
    assert replace(guess, kept=0, work=0, logits=0).total(2) == 1000 + 60 + 40
    for memory, k in ((0, 1), (1170, 1), (1249, 1), (1250, 2), (1410, 4), (10**6, 7)):
        assert guess.most(memory, 7) == k, memory


def test_other_models_have_the_packs_that_they_had_and_large_language_models_smaller_ones() -> None:
    cpu, half, single = torch.device("cpu"), torch.bfloat16, torch.float32
    assert [packing.paying(8, w, cpu, single) for w in (16, 64, 128)] == [8, 2, 1]
    assert [packing.paying(8, w, cpu, half) for w in (16, 64, 128)] == [32, 8, 4]
    assert packing.paying(8, 64, torch.device("cuda"), half, 10**9) == 128
    assert [packing.paying(1, 128, cpu, half, n) for n in (10**6, 135_000_000, 4 * 135_000_000, 7 * 10**9)] == [32, 8, 4, 1]
    assert [packing.paying(1, 128, cpu, single, n) for n in (10**6, 135_000_000, 4 * 135_000_000)] == [8, 8, 4]
