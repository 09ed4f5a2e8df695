"""HeteroFL against its card: leading slices, the mean of each entry over its holders, the scaler, and masked classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, Case, Sizes, Turn, lora
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.message import ClientInfo, Update
from weft.methods import FedIT, HeteroFL
from weft.tasks.kinds import GENERATION
from weft.testing import laws
from weft.testing.plays import shallow

SGD = Optim("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, clip=1.0, schedule="constant")
SMALL = HeteroFL(rank=4, alpha=4.0, sites="q,ffn.in", rates=(1.0, 0.5, 0.25), epochs=1.0, batch=3, optim=SGD)
Named = dict[str, Tensor]


def federation(method: HeteroFL = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 2} | settings)


def cut(name: str, value: Tensor, rank: int) -> Tensor:
    if not name.startswith("lora/"):
        return value
    return value[:rank] if name.endswith("/A") else value[:, :rank]


def trained(run: tiny.Federation, k: int, shared: Named, rate: float, masked: bool = False) -> Named:
    """A client's turn: its slice in merged weights, divided by its rate, and plain SGD."""
    leaves = {n: cut(n, v, int(4 * rate)).clone().requires_grad_(True) for n, v in shared.items()}
    opt = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    mine = np.unique(run.bench.table.labels[run.clients[k].data.train])
    absent = [c for c in range(3) if c not in mine]
    for rows in by_hand.steps_of(run, k, 0):
        opt.zero_grad()
        z = by_hand.logits(run, leaves, rows[rows >= 0], 1 / rate)  # α/r = 1
        if masked:
            z = z.index_fill(1, torch.tensor(absent, dtype=torch.int64), 0.0)
        F.cross_entropy(z, by_hand.labels(run, rows[rows >= 0])).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        opt.step()
    return {n: v.detach() for n, v in leaves.items()}


def combined(shared: Named, ends: Iterable[tuple[Named, list[int] | None]]) -> Named:
    """The mean of each entry, one by one; with classes a client's rows of the output layer count for those alone."""
    found = {}
    for name, old in shared.items():
        total, count = torch.zeros_like(old), torch.zeros_like(old)
        for end, classes in ends:
            value = end[name]
            here = torch.ones_like(value)
            if classes is not None and name.startswith("head/"):
                here = torch.stack([torch.full_like(row, float(c in classes)) for c, row in enumerate(value)])
            at = tuple(slice(0, n) for n in value.shape)
            total[at] += here * value
            count[at] += here
        found[name] = torch.where(count > 0, total / count.clamp(min=1), old)
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_two_rounds_are_those_of_plain_pytorch(masked: bool) -> None:
    """The one client of the whole rank is away in the second round, and the outer ranks stay as they are."""
    run = federation(replace(SMALL, masked=masked))
    labels = run.bench.table.labels.copy()
    labels[run.clients[1].data.train] = 1  # one client has a single class
    run.bench.table = replace(run.bench.table, labels=labels)
    shared = by_hand.shared(run)
    for t, present in enumerate(([0, 1, 2], [1, 2])):
        ends = []
        for k in present:
            classes = np.unique(run.bench.table.labels[run.clients[k].data.train]).tolist() if masked else None
            with pytest.MonkeyPatch.context() as patch:
                steps = by_hand.steps_of
                patch.setattr(by_hand, "steps_of", lambda r, p, _, now=t, f=steps: f(r, p, now))
                ends.append((trained(run, k, shared, SMALL.rates[k], masked), classes))
        last, shared = by_hand.shared(run), combined(shared, ends)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in present]: c)
            run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, shared[name], 1e-12)
            if t == 1 and name.startswith("lora/"):
                outside = value[2:] if name.endswith("/A") else value[:, 2:]
                assert torch.equal(outside, last[name][2:] if name.endswith("/A") else last[name][:, 2:])
    by_hand.close(run.global_logits(dtype=torch.float64), by_hand.logits(run, shared), 1e-11)


def test_rates_of_one_are_averaged_lora() -> None:
    whole = federation(replace(SMALL, rates=(1.0,))).run()
    plain = tiny.federation(
        FedIT(rank=4, alpha=4.0, sites="q,ffn.in", weighting="uniform", epochs=1.0, batch=3, optim=SGD), sizes=(6, 5, 7), rounds=2
    ).run()
    assert by_hand.shared(whole).keys() == by_hand.shared(plain).keys()
    assert all(torch.equal(v, by_hand.shared(plain)[n]) for n, v in by_hand.shared(whole).items())


def test_to_deal_out_and_to_take_back_changes_nothing() -> None:
    run = federation()
    before = by_hand.shared(run)
    updates = []
    for k, client in enumerate(run.clients):
        pack = run.pack([k], 0)
        values: dict[str, Any] = {n: pack.value(0, n) for n in pack.shapes}
        assert all(torch.equal(v, cut(n, before[n], int(4 * SMALL.rates[k]))) for n, v in values.items())
        updates.append(by_hand.update(run, k, values, float(client.n)))
    run.method.aggregate(run.server, updates)
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_slices_are_nested_and_their_scale_is_that_of_the_whole() -> None:
    whole = LoRA(10, 30.0)
    sizes = [whole.leading(p) for p in (0.05, 0.1, 0.2, 0.3, 0.55, 1.0)]
    assert [part.rank for part in sizes] == [1, 1, 2, 3, 6, 10]
    assert [part.of for part in sizes] == [10] * 6
    assert [part.alpha / part.rank for part in sizes] == pytest.approx([3.0] * 6)
    assert [LoRA(15, 15.0).leading(p).rank for p in (0.2, 0.4, 0.6, 0.8)] == [3, 6, 9, 12]


def test_the_scaler_acts_in_training_alone() -> None:
    run = federation().run()
    scaled, plain = (federation(replace(SMALL, scaler=on), rounds=1) for on in (True, False))
    by_hand.close(run.global_logits(dtype=torch.float64), by_hand.logits(run, by_hand.shared(run)), 1e-11)
    for other in (scaled, plain):
        other.run()
    moved = [by_hand.shared(r) for r in (scaled, plain)]
    assert any(not torch.equal(v, moved[1][n]) for n, v in moved[0].items())


def test_classes_that_strangers_tell_and_that_are_none_count_for_nothing() -> None:
    run = federation(replace(SMALL, masked=True))
    before = by_hand.shared(run)
    head = next(n for n in before if n.startswith("head/") and n.endswith("/weight"))
    for told in (None, "all", [99, -1, True, "x", 2.0], [[0]], {"0": 1}):
        update = by_hand.update(run, 0, {n: v + 1 for n, v in before.items()}, 6.0)
        update = Update(update.tensors, {} if told is None else {"classes": told}, update.client, 6.0, update.adaptation)
        run.method.aggregate(run.server, [update])
        after = by_hand.shared(run)
        rows = (after[head] - before[head]).abs().sum(1) > 0
        assert rows.tolist() == [False, False, False]
        for name, value in before.items():
            run.server.write(name, value)


def test_rates_that_do_not_nest_and_clients_without_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 4 ranks the rates 0.1 and 0.2 are both 1"):
        replace(SMALL, rates=(0.2, 0.1))
    with pytest.raises(UserError, match="names no rate"):
        replace(SMALL, rates=())
    with pytest.raises(UserError, match="rates"):
        replace(SMALL, rates=(0.0,))
    for rate in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="client far has the rate"):
            SMALL.adapt(tiny.backbone("bert"), tiny.bench("bert").task, ClientInfo("far", 3, {"rate": rate}))
    with pytest.raises(UserError, match="this task has none"):
        tiny.federation(HeteroFL(masked=True), shallow(SMALL, task=GENERATION), task=GENERATION)


def test_with_masked_classes_the_laws_hold() -> None:
    laws.check(replace(SMALL, masked=True), "pack", "return", "sums", "sites", "resuming", "counting")


def held(turn: Turn) -> Sizes:
    return {"lora": lora(int(4 * turn.facts["rate"])), "head": HEAD}


BYTES = Case(
    {"rank": 4, "sites": "q,ffn.in", "rates": [1.0, 0.5, 0.25]},
    held,
    held,
    facts=tuple({"rate": (1.0, 0.5, 0.25)[k % 3]} for k in range(6)),
)
