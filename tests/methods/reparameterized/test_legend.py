"""LEGEND against its card: the search for depths, ranks by block, and the mean of each block over those who have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import BLOCK, HEAD, LAYERS, SITES, Case, Sizes, Turn
from weft.contract import Optim
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import LEGEND
from weft.methods.reparameterized.legend import depths
from weft.tasks.kinds import GENERATION
from weft.testing.sites import remote
from weft.testing.workers import scattered

LR = 0.3
SMALL = LEGEND(first=1, alpha=1.5, wait=0.25, steps=2, batch=2, optim=Optim("sgd", lr=LR, schedule="constant"))
FACTS: list[Mapping[str, Any]] = [
    {"speed": 4.0, "bandwidth": 8.0},
    {"speed": 1.0, "bandwidth": 2.0},
    {"speed": 2.0, "bandwidth": 4.0},
]
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert", "facts": FACTS}
DEPTHS = [3, 1, 2]
Values = Mapping[str, Tensor]
Floats = Sequence[float]


def block_of(name: str) -> int:
    return int(name.split("layer.")[1].split(".")[0])


def has(name: str, depth: int) -> bool:
    return not name.startswith("lora/") or block_of(name) >= LAYERS - depth


def search(
    forward: Sequence[float], backward: Sequence[float], upload: Sequence[float], ranks: Sequence[int], wait: float
) -> list[int]:
    """The card's pseudo-code, in plain numbers."""
    n, blocks = len(forward), len(ranks)

    def time(i: int, k: int) -> float:
        return forward[i] + k * backward[i] + upload[i] * sum(ranks[block] for block in range(blocks - k, blocks))

    c = [1 / time(i, blocks) for i in range(n)]
    least = blocks
    while True:
        share = [(x - min(c)) / (max(c) - min(c)) if max(c) > min(c) else 1.0 for x in c]
        k = [int(least + (blocks - least) * s + 0.5) for s in share]
        times = [time(i, k[i]) for i in range(n)]
        if sum(max(times) - t for t in times) / n <= wait * max(times) or least == 1:
            return k
        least -= 1


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.3, 0.5])
def test_depths_are_those_of_the_search_and_monotone_in_capacity(wait: float) -> None:
    draw = np.random.default_rng(0)
    kinds = set()
    for _ in range(50):
        n, blocks = int(draw.integers(2, 9)), int(draw.integers(2, 13))
        forward, backward, upload = draw.uniform(1, 9, n), draw.uniform(0.1, 3, n), draw.uniform(0.0, 0.2, n)
        ranks = [2 + block for block in range(blocks)]
        found = depths(forward, backward, upload, ranks, wait)
        assert found == search(list(forward), list(backward), list(upload), ranks, wait)
        whole = forward + blocks * backward + upload * sum(ranks)
        order = np.argsort(whole)
        assert all(found[a] >= found[b] for a, b in pairwise(order))
        assert all(1 <= k <= blocks for k in found)
        assert found[order[0]] == blocks
        kinds |= set(found)
    assert len(kinds) > (3 if wait < 0.5 else 0)


def test_equal_devices_have_all_blocks_and_nobody_waits() -> None:
    same = np.full(5, 2.0)
    assert depths(same, same / 12, same / 100, range(2, 14), 0.0) == [12] * 5


def test_a_client_without_rows_keeps_nobody_waiting() -> None:
    forward = np.array([4.0, 0.0, 1.0])
    found = depths(forward, forward / 3, np.full(3, 1e-3), [1, 2, 3], 0.2)
    alone = depths(forward[[0, 2]], forward[[0, 2]] / 3, np.full(2, 1e-3), [1, 2, 3], 0.2)
    assert found == [alone[0], 3, alone[1]]
    assert depths(np.zeros(2), np.zeros(2), np.ones(2), [1, 2, 3], 0.2) == [3, 3]


def test_four_rounds_by_hand_with_clients_that_are_away() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    x = by_hand.shared(run)
    for t, present in enumerate(cohorts.ABSENT):
        ends = {}
        for k in present:
            leaves = {n: v.clone().requires_grad_(True) for n, v in x.items() if has(n, DEPTHS[k])}
            opt = torch.optim.SGD(list(leaves.values()), LR)
            for rows in by_hand.steps_of(run, k, t):
                opt.zero_grad()
                F.cross_entropy(by_hand.logits(run, leaves, rows, 1.5), by_hand.labels(run, rows)).backward()
                opt.step()
            ends[k] = {n: v.detach() for n, v in leaves.items()}
        cohorts.play(run, t, present)
        after = by_hand.shared(run)
        for name, value in x.items():
            own = [end[name] for end in ends.values() if name in end]
            by_hand.close(after[name], sum(own) / len(own) if own else value, 1e-9)  # type: ignore[arg-type]
            assert own or torch.equal(after[name], value)
        x = after
    assert [run.server.said[c.id]["depth"] for c in run.clients] == DEPTHS


def test_a_device_has_no_tensor_in_a_block_that_is_not_its_own() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    for k, depth in enumerate(DEPTHS):
        pack = run.pack([k])
        assert {block_of(n) for n in pack.params("lora")} == set(range(LAYERS - depth, LAYERS))
    ranks = {block_of(n): v.shape[0] for n, v in run.server.shared.items() if n.endswith("/A")}
    assert ranks == {0: 1, 1: 2, 2: 3}


def test_times_are_operations_over_speed_and_bits_over_bandwidth() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    forward, backward, upload = run.method.times(run.server)  # type: ignore[attr-defined]
    weights = LAYERS * (4 * 32 * 32 + 2 * 32 * 64)
    assert forward == pytest.approx([2 * 2 * 128 * 2 * weights / (1e12 * f["speed"]) for f in FACTS])
    assert backward == pytest.approx(forward / LAYERS)
    assert upload == pytest.approx([32 * 2 * 64 / (1e6 * f["bandwidth"]) for f in FACTS])
    per_epoch = tiny.federation(replace(SMALL, steps=None, epochs=3.0), **ABOUT)
    longer, _, _ = per_epoch.method.times(per_epoch.server)  # type: ignore[attr-defined]
    assert longer == pytest.approx([3 * c.n / 4 * f for c, f in zip(run.clients, forward, strict=True)])


def test_growth_0_gives_one_rank_to_all_blocks_and_the_scale_is_the_same_in_all() -> None:
    run = tiny.federation(replace(SMALL, growth=0), **ABOUT)
    assert {v.shape[0] for n, v in run.server.shared.items() if n.endswith("/A")} == {1}
    lora = run.server.adaptation["lora"][0]
    assert {lora.constants(site)["scale"] for site in run.server.sites("lora")} == {1.5}


def test_a_block_comes_with_the_servers_values_when_a_device_gets_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(SMALL, **ABOUT).run(2)
    monkeypatch.setattr("weft.methods.reparameterized.legend.depths", lambda *_: [LAYERS] * 3)
    pack = run.pack([1], t=2)
    assert run.server.said["client-1"] == {"depth": LAYERS}
    names = [n for n in run.server.shared if n.startswith("lora/")]
    assert list(pack.params("lora")) == names
    for name in names:
        assert torch.equal(pack.params("lora")[name][0].detach(), run.server.shared[name])  # type: ignore[arg-type]


def test_sites_workers_and_checkpoints_agree() -> None:
    wanted = tiny.federation(SMALL, **ABOUT).run()
    for run in (remote(SMALL, **ABOUT)[0].run(), scattered(SMALL, **ABOUT)[0].run()):
        assert run.server.said == wanted.server.said
        for name, value in by_hand.shared(wanted).items():
            by_hand.close(by_hand.shared(run)[name], value, 1e-12)


def test_it_trains_a_model_that_writes() -> None:
    run = tiny.federation(SMALL, "llama", task=GENERATION, rounds=2, sizes=(6, 5, 7), facts=FACTS)
    before = by_hand.shared(run)
    run.run()
    assert all(not torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


@pytest.mark.parametrize("fact", ["speed", "bandwidth"])
@pytest.mark.parametrize("value", [0.0, -2.0, "fast", True, float("inf")])
def test_a_device_that_does_nothing_is_said_in_a_sentence(fact: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"client-1 has {fact} = "):
        tiny.federation(SMALL, **{**ABOUT, "facts": [{}, {fact: value}, {}]}).run(1)


def test_defaults_are_the_cards() -> None:
    method, backbone = LEGEND(), by_hand.roberta_base()
    assert sum(method.ranks(backbone)) == 90
    assert method.ranks(backbone) == list(range(2, 14))
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 90 * (768 + 768) * 2
    for depth, total in ((12, 270), (9, 216), (6, 153)):
        ranks = replace(method, first=17).ranks(backbone)
        assert sum(ranks[12 - depth :]) == total


# what other tests ask of this method --------------------------------------------------------------------------------------


def whole(turn: Turn) -> Sizes:
    """Of devices that are all alike: every block, ranks 2, 3, 4."""
    sides = [2 + block for block in range(LAYERS) for _ in BLOCK for _ in "AB"]
    lengths = [side for _ in range(LAYERS) for pair in BLOCK for side in pair]
    return {"lora": [rank * side for rank, side in zip(sides, lengths, strict=True)], "head": HEAD}


BYTES = Case(
    SITES,
    whole,
    whole,
    facts=({"speed": 1.0, "bandwidth": 1.0},) * 6,
    head=True,
)
