"""Who shares a pass, and what it is reckoned to take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import tiny
from weft.engines import packing
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION


def language() -> Bench:
    return tiny.federation(FedIT(rank=2), "llama", task=GENERATION).bench


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
    assert again.per_client < usual.per_client
    assert again.fixed == usual.fixed
    weights = sum(p.numel() * p.element_size() for p in bench.backbone.model.parameters())
    assert usual.fixed - weights == 3 * 128 * 100 * 8  # 4 x 32 rows of 100 logits, and two temporaries
    whole = tiny.federation(
        FedIT(rank=2), tiny.backbone("llama", classes=1, checkpoint="lm", task=GENERATION, num_key_value_heads=4), task=GENERATION
    )
    assert packing.estimate(whole.bench, method, 1000, 32).per_client > usual.per_client
    double = packing.estimate(bench, method, 1000, 64)
    kept = usual.per_client - 1000 * 20
    assert double.per_client - 1000 * 20 == 2 * kept  # attention keeps no scores [T, T]


def test_other_models_have_the_packs_that_they_had_and_large_language_models_smaller_ones() -> None:
    cpu, half, single = torch.device("cpu"), torch.bfloat16, torch.float32
    assert [packing.paying(8, w, cpu, single) for w in (16, 64, 128)] == [8, 2, 1]
    assert [packing.paying(8, w, cpu, half) for w in (16, 64, 128)] == [32, 8, 4]
    assert packing.paying(8, 64, torch.device("cuda"), half, 10**9) == 128
    assert [packing.paying(1, 128, cpu, half, n) for n in (10**6, 135_000_000, 4 * 135_000_000, 7 * 10**9)] == [32, 8, 4, 1]
    assert [packing.paying(1, 128, cpu, single, n) for n in (10**6, 135_000_000, 4 * 135_000_000)] == [8, 8, 4]
