"""CELL against its card: one broadcast, two modes, and thresholds that come down to clients that lag behind."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tickets_by_hand as hand
import tiny
from bytes_of import CLASSES, Case, factors_and_head
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.contract import Masked, Tune
from weft.federation.pack import Pack
from weft.methods import CELL, LotteryFL
from weft.testing import laws
from weft.testing.plays import Plays

SGD = Optim("sgd", lr=0.1, momentum=0.5, schedule="constant")
LORA = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = CELL(tune=LORA, threshold=0.4, epochs=2.0, batch=2, patience=2, easing=0.5, optim=SGD)
PLAYED = CELL(tune=LORA, threshold=0.4, batch=3, patience=1)


def federation(method: CELL = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 7} | settings)


def modes(monkeypatch: pytest.MonkeyPatch, *rounds: dict[str, bool]) -> None:
    """Who is in lottery mode, by round and client."""
    monkeypatch.setattr(CELL, "wins", lambda self, pack: [rounds[pack.round.index][c.id] for c in pack.clients])


@pytest.mark.parametrize("rewind", [True, False])
def test_seven_rounds_are_those_of_plain_pytorch(rewind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client is away for two rounds; one that has pruned lags behind afterwards, and trains the whole model again."""
    method = replace(SMALL, rewind=rewind)
    run = federation(method)
    shared = start = by_hand.shared(run)
    people = hand.holders(run, 3)
    again = False
    script = [(1, 0, 1), (0, 0, 1), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    modes(monkeypatch, *({f"client-{k}": bool(good) for k, good in enumerate(of)} for of in script))
    for t, present in enumerate(([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2], [0, 2])):
        ends, counted = [], []
        for k in present:
            who = people[k]
            if script[t][k]:
                values, mask = hand.prune(method, who, who.ticket(shared), start), dict(who.mask)
                who.failed = 0
            else:
                values, mask = shared, {n: torch.ones_like(m) for n, m in who.mask.items()}
                again = again or who.left < 1
                who.failed += 1
                if who.failed == 2:
                    who.threshold, who.failed = 0.5 * who.threshold, 0
            ends.append(hand.steps(run, k, t, values, mask))
            counted.append(mask)
        shared = hand.mean(shared, ends, counted)
        hand.played(run, present, t)
        hand.same(run, shared, people)
    assert again
    for k, who in enumerate(people):
        memo = hand.memory(run, k)
        assert memo.get("left", 1.0) == pytest.approx(who.left)
        assert memo.get("threshold", 0.4) == pytest.approx(who.threshold)
        assert memo["failed"] == who.failed
    assert {who.threshold for who in people} == {0.4, 0.2}


def test_the_mode_is_that_of_accuracy_above_a_clients_own_threshold() -> None:
    run = federation(replace(SMALL, threshold=0.4, patience=1), rounds=6)
    shared, people = by_hand.shared(run), hand.holders(run, 3)
    for t in range(6):
        found = [hand.accuracy(run, k, who.ticket(shared)) for k, who in enumerate(people)]
        pack = run.pack([0, 1, 2], t)
        assert run.method.wins(pack) == [a > who.threshold for a, who in zip(found, people, strict=True)]  # type: ignore[attr-defined]
        run.simulation.round(t)
        shared = by_hand.shared(run)
        for k, who in enumerate(people):
            if found[k] <= who.threshold:
                who.threshold *= 0.5
            who.mask |= {n: m.to(torch.float64) for n, m in hand.masks(run, k).items()}
            assert hand.memory(run, k).get("threshold", 0.4) == pytest.approx(who.threshold)
    assert len({who.threshold for who in people}) > 1


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"threshold": 1.0}], ids=str)
def test_who_prunes_nothing_is_averaged_alike(changes: dict[str, float]) -> None:
    mine = federation(replace(SMALL, **changes), rounds=3).run()
    same: dict[str, Any] = {f.name: getattr(SMALL, f.name) for f in fields(LotteryFL)} | {"rate": 0.0}
    plain = tiny.federation(LotteryFL(**same), "bert", sizes=(6, 5, 7), rounds=3).run()
    for name, value in by_hand.shared(mine).items():
        assert torch.equal(value, by_hand.shared(plain)[name])


def test_a_broadcast_is_one_and_updates_are_tickets_or_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    modes(monkeypatch, *[{"client-0": True, "client-1": False, "client-2": True}] * 3)
    run = federation(rounds=3, precision="float32")
    updates = by_hand.record(run)
    run.run()
    ledger = run.simulation.setup.exchange.ledger
    values = by_hand.shared(run)
    whole, matrices = sum(v.numel() for v in values.values()), [v.numel() for v in values.values() if v.dim() > 1]
    for t in (1, 2):
        assert ledger.totals(round=t, direction="down", phase="train").payload == 3 * 4 * whole
        assert ledger.totals(round=t, direction="down", phase="train", broadcast_once=True).payload == 4 * whole
    few = 4 * sum(n - int(0.2 * n) for n in matrices) + sum(-(-n // 8) for n in matrices) + 4 * CLASSES
    assert ledger.totals(round=0, direction="up", phase="train").payload == 2 * few + 4 * whole
    for k, sent in enumerate(updates[-1]):
        for name, mask in hand.masks(run, k).items() if k != 1 else ():
            value = sent.tensors[name]
            assert isinstance(value, Masked)
            assert torch.equal(value.mask, mask)
    assert not hand.masks(run, 1)


def test_who_lags_behind_trains_what_it_received_and_keeps_its_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    modes(
        monkeypatch,
        {"client-0": True, "client-1": True, "client-2": True},
        {"client-0": False, "client-1": True, "client-2": False},
    )
    run = federation(rounds=2)
    run.run(1)
    received, tickets = by_hand.shared(run), [hand.masks(run, k) for k in range(3)]
    local, seen = LotteryFL.local, {}

    def watched(self: LotteryFL, pack: Pack, entries: dict[str, Tensor]) -> Any:
        for k, client in enumerate(pack.clients):
            seen[client.id] = {n: (v[k].clone(), entries[n][k] if n in entries else None) for n, v in pack.tensors.items()}
        return local(self, pack, entries)

    monkeypatch.setattr(LotteryFL, "local", watched)
    run.simulation.round(1)
    for k in (0, 2):
        for name, value in received.items():
            entered, free = seen[f"client-{k}"][name]
            assert torch.equal(entered, value)
            assert free is None or bool(free.all())
        assert all(torch.equal(mask, tickets[k][n]) for n, mask in hand.masks(run, k).items())


def test_a_client_without_rows_waits() -> None:
    run = federation(replace(SMALL, patience=1), sizes=(6, 0, 5), rounds=3).run()
    assert "threshold" not in hand.memory(run, 1)


@pytest.fixture(scope="module")
def everybody() -> Plays:
    return Plays(PLAYED)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_runs_in_packs_keep_the_laws(law: Law, everybody: Plays) -> None:
    keep(law, everybody)
    updates = [u for turn in everybody.packed.seen.turns.values() for u in turn.updates]
    whole = {bool(v.mask.all()) for u in updates for v in u.tensors.values() if isinstance(v, Masked)}
    assert whole == {True, False}, "both modes"


def test_its_rule_keeps_the_laws_in_packs() -> None:
    laws.check(PLAYED, "sums", "counting", "reading", "roll-back", "single precision", "codecs")


SETTINGS = {"tune.kind": "lora", "tune.rank": 2, "tune.at": "q,ffn.in"}
BYTES = Case(SETTINGS | {"threshold": 1.0}, factors_and_head, factors_and_head)
