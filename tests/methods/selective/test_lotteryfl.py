"""LotteryFL against its card: when a client prunes and what, the rewind, and tickets that are all that travels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tickets_by_hand as hand
import tiny
from bytes_of import CLASSES, Case, D, factors_and_head
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.contract import Masked, Tune
from weft.federation.pack import Pack
from weft.methods import FedAvg, LotteryFL
from weft.testing import laws
from weft.testing.plays import Plays

SGD = Optim("sgd", lr=0.1, momentum=0.5, schedule="constant")
LORA = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = LotteryFL(tune=LORA, threshold=0.4, epochs=2.0, batch=2, optim=SGD)
PLAYED = LotteryFL(tune=LORA, threshold=0.4, batch=3)


def federation(method: LotteryFL = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 6} | settings)


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client wins."""
    monkeypatch.setattr(LotteryFL, "wins", lambda self, pack: [True] * len(pack.clients))


@pytest.mark.parametrize("rewind", [True, False])
def test_six_rounds_are_those_of_plain_pytorch(rewind: bool) -> None:
    """One client is away for two rounds."""
    method = replace(SMALL, rewind=rewind)
    run = federation(method)
    shared = start = by_hand.shared(run)
    people = hand.holders(run, 3)
    for t, present in enumerate(([0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2], [0, 2])):
        ends, counted = [], []
        for k in present:
            who, values = people[k], people[k].ticket(shared)
            who.won.append(hand.accuracy(run, k, values) > method.threshold)
            if who.won[-1]:
                values = hand.prune(method, who, values, start)
            ends.append(hand.steps(run, k, t, values, who.mask))
            counted.append(dict(who.mask))
        shared = hand.mean(shared, ends, counted)
        hand.played(run, present, t)
        hand.same(run, shared, people)
    assert {won for who in people for won in who.won} == {True, False}, "somebody has pruned and somebody has not"
    for k, who in enumerate(people):
        assert hand.memory(run, k).get("left", 1.0) == pytest.approx(who.left)


def test_masks_only_shrink_to_what_is_left_and_stop_at_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    run, before = federation(rounds=6), {}
    for t in range(6):
        run.simulation.round(t)
        left = 0.8 ** min(t + 1, 4)  # 0.512 is above one half, 0.4096 is not
        assert hand.memory(run, 1)["left"] == pytest.approx(left)
        assert left > SMALL.target * (1 - SMALL.rate)
        found = hand.masks(run, 1)
        for name, mask in found.items():
            assert float(mask.double().mean()) == pytest.approx(left, abs=4 / mask.numel())
            assert name not in before or bool((mask <= before[name]).all())
        before = found
    assert {n.rsplit("/", 1)[1] for n in before} == {"A", "B", "weight"}, "no bias is pruned"


def test_the_smallest_of_what_is_alive_go(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    run = federation(replace(SMALL, rewind=False), rounds=3)
    run.run(2)
    before = hand.masks(run, 0)
    values = {n: v.abs() for n, v in by_hand.shared(run).items()}
    run.simulation.round(2)
    for name, mask in hand.masks(run, 0).items():
        gone = before[name] & ~mask
        assert int(gone.sum()) == int(0.2 * int(before[name].sum()))
        assert float(values[name][gone].max()) <= float(values[name][mask].min())


@pytest.mark.parametrize("rewind", [True, False])
def test_survivors_enter_their_steps_as_they_began_or_as_they_were_received(
    rewind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch)
    run = federation(replace(SMALL, rewind=rewind), rounds=3)
    start = by_hand.shared(run)
    run.run(2)
    received = by_hand.shared(run)
    local, seen = LotteryFL.local, {}

    def watched(self: LotteryFL, pack: Pack, entries: dict[str, Tensor]) -> Any:
        seen.update({(c.id, n): v[k].clone() for n, v in pack.tensors.items() for k, c in enumerate(pack.clients)})
        return local(self, pack, entries)

    monkeypatch.setattr(LotteryFL, "local", watched)
    run.simulation.round(2)
    for k, client in enumerate(run.clients):
        own = hand.masks(run, k)
        for name, value in (start if rewind else received).items():
            assert torch.equal(seen[client.id, name], value * own[name] if name in own else value)


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"threshold": 1.0}], ids=str)
def test_who_prunes_nothing_is_averaged_alike(changes: dict[str, float]) -> None:
    mine = federation(replace(SMALL, **changes), rounds=3).run()
    plain = tiny.federation(
        FedAvg(tune=LORA, weighting="uniform", epochs=2.0, batch=2, optim=SGD), "bert", sizes=(6, 5, 7), rounds=3
    ).run()
    for name, value in by_hand.shared(mine).items():
        by_hand.close(value, by_hand.shared(plain)[name], 1e-12)


def test_what_is_pruned_is_zero_moves_nobody_and_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decay and momentum wake nothing."""
    always(monkeypatch)
    run = federation(replace(SMALL, optim=SGD.but(weight_decay=0.1)), rounds=4)
    updates = by_hand.record(run)
    run.run()
    for k, client in enumerate(run.clients):
        pack = run.pack([k], 4)
        for name, mask in hand.masks(run, k).items():
            sent = updates[-1][k].tensors[name]
            assert isinstance(sent, Masked)
            assert torch.equal(sent.mask, mask)
            assert not bool(pack.value(0, name)[~mask].any())
            assert bool(pack.value(0, name)[mask].all()), client.id


def test_disjoint_masks_copy_their_owner_and_nobodys_entries_stay() -> None:
    run = federation(rounds=1)
    before = by_hand.shared(run)
    name = "head/classifier/weight"
    thirds = torch.arange(CLASSES * D).view(CLASSES, D) % 4
    values = [torch.full((CLASSES, D), float(k + 1), dtype=torch.float64) for k in range(3)]
    sent = [by_hand.update(run, k, {name: Masked.of(v, thirds == k)}, 5.0 + k) for k, v in enumerate(values)]
    SMALL.aggregate(run.server, sent)
    found = run.server.shared[name]
    assert isinstance(found, Tensor)
    for k in range(3):
        assert bool((found[thirds == k] == k + 1).all())
    assert torch.equal(found[thirds == 3], before[name][thirds == 3])
    everybody = [by_hand.update(run, k, {name: Masked.of(v, thirds == 3)}, 5.0 + k) for k, v in enumerate(values)]
    SMALL.aggregate(run.server, everybody)
    assert torch.equal(run.server.shared[name][thirds == 3], torch.full_like(found[thirds == 3], 2.0))  # type: ignore[index]


def test_only_validation_rows_tell_whether_to_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has none prunes nothing, and neither labels of test rows nor those of training rows are looked at."""
    run = federation(replace(SMALL, threshold=0.0), rounds=2)
    run.clients[1].data = replace(run.clients[1].data, val=np.zeros(0, dtype=np.int64))
    asked: list[list[int]] = []
    labels = Pack.labels
    monkeypatch.setattr(Pack, "labels", lambda self, rows: (asked.append(rows.tolist()), labels(self, rows))[1])
    run.run()
    val = {tuple(c.data.val.tolist()) for c in run.clients}
    assert {tuple(rows) for rows in asked} == val
    assert not hand.masks(run, 1)
    assert hand.masks(run, 0)


def test_one_entry_of_a_matrix_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    run = federation(replace(SMALL, rate=1.0, target=0.0), rounds=2).run()
    assert {int(m.sum()) for m in hand.masks(run, 0).values()} == {1}
    assert hand.memory(run, 0)["left"] == 0.0


def test_bytes_are_those_of_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up go entries, and where they are once they are others; down come those of the last ticket and where they are."""
    always(monkeypatch)
    run = federation(rounds=6, precision="float32").run()
    ledger = run.simulation.setup.exchange.ledger
    matrices = [v.numel() for v in by_hand.shared(run).values() if v.dim() > 1]

    def left(size: int, times: int) -> int:
        for _ in range(times):
            size -= int(0.2 * size)
        return size

    def cost(times: int, places: bool) -> int:
        return 3 * (sum(4 * left(n, times) + (-(-n // 8) if places else 0) for n in matrices) + 4 * CLASSES)

    for t in range(6):
        up = ledger.totals(round=t, phase="train", direction="up").payload
        assert up == cost(min(t + 1, 4), places=t < 4)
        down = ledger.totals(round=t, phase="train", direction="down").payload
        assert down == (cost(min(t, 4), places=True) if t else 0)


@pytest.fixture(scope="module")
def everybody() -> Plays:
    return Plays(PLAYED)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_runs_in_packs_keep_the_laws(law: Law, everybody: Plays) -> None:
    keep(law, everybody)
    notes = everybody.packed.run.server.notes
    sent = [v for c in notes.manifest for v in notes.get(c).values()]
    assert any(bool((v != 255).any()) for v in sent), "places of all entries alone would prove nothing"


def test_its_rule_keeps_the_laws_in_packs() -> None:
    laws.check(PLAYED, "sums", "counting", "reading", "roll-back", "single precision", "codecs")


SETTINGS = {"tune.kind": "lora", "tune.rank": 2, "tune.at": "q,ffn.in"}
BYTES = Case(SETTINGS | {"threshold": 1.0}, factors_and_head, factors_and_head)
