"""FedSelect against its card: LocalAlt, GradSelect, what travels of a matrix, and means over those who sent an entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import CLASSES, HEAD, Bits, Case, D, Sizes, Turn, factors_and_head, lora
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.contract import Masked, Tune
from weft.federation.pack import Pack
from weft.methods import FedAvg, FedSelect
from weft.testing import laws
from weft.testing.plays import Plays
from weft.testing.sites import remote

SGD = Optim("sgd", lr=0.1, schedule="constant")
LORA = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = FedSelect(tune=LORA, every=2, epochs=2.0, batch=2, optim=SGD)
GROWING = FedSelect(tune=LORA, every=1, epochs=1.0, batch=3)
EVERY = 10**6
Named = dict[str, Tensor]

TINY = {"every": 1, "epochs": 2.0}


def federation(method: FedSelect = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 8} | settings)


def memory(run: tiny.Federation, k: int) -> dict[str, Any]:
    run.simulation.setup.store.load(run.clients[k])
    return run.clients[k].memo


def own_masks(run: tiny.Federation, k: int, word: str = "mask/") -> Named:
    return {n.removeprefix(word): v for n, v in memory(run, k).items() if n.startswith(word)}


@dataclass
class Person:
    """A client by hand: θ_k, m_k of the next turn and of the last one, θ_ref, turns so far."""

    theta: Named
    mask: dict[str, np.ndarray]
    sent: dict[str, np.ndarray]
    reference: Named
    turns: int = 0

    @classmethod
    def of(cls, start: Named) -> Person:
        zero = {n: np.zeros(v.shape, bool) for n, v in start.items()}
        return cls(dict(start), dict(zero), dict(zero), dict(start))

    def enter(self, received: Named) -> Named:
        return {n: torch.where(torch.from_numpy(self.sent[n]), self.theta[n], v) for n, v in received.items()}

    def turn(self, run: tiny.Federation, k: int, t: int, received: Named, method: FedSelect) -> None:
        theta = self.enter(received)
        pack = run.pack([k], t)
        for i in range(int(method.epochs)):
            for kind, mask in (("own", self.mask), ("common", {n: ~m for n, m in self.mask.items()})):
                for batch in pack.batches(1.0, None, method.batch, f"{kind} {i}"):
                    rows = batch.index[0]
                    leaves = {n: v.clone().requires_grad_(True) for n, v in theta.items()}
                    loss = F.cross_entropy(by_hand.logits(run, leaves, rows), by_hand.labels(run, rows))
                    slopes = torch.autograd.grad(loss, list(leaves.values()))
                    theta = {
                        n: v - method.optim.lr * g * torch.from_numpy(mask[n])
                        for (n, v), g in zip(theta.items(), slopes, strict=True)
                    }
        self.theta, self.sent = theta, dict(self.mask)
        if self.turns and self.turns % method.every == 0:
            for name, value in theta.items():
                if value.dim() < 2:
                    continue
                mask = self.mask[name].ravel().copy()
                if mask.mean() <= method.limit:
                    moved = (value - self.reference[name]).abs().numpy().ravel()
                    common = np.flatnonzero(~mask)
                    mask[common[np.argsort(-moved[common], kind="stable")][: round(method.rate * len(common))]] = True
                self.mask[name], self.reference[name] = mask.reshape(value.shape), value
        self.turns += 1


def test_eight_rounds_are_those_of_plain_pytorch() -> None:
    """One client is away for a while: its turns count by themselves, and it gets the newest mean where it shares."""
    run = federation()
    shared = by_hand.shared(run)
    people = [Person.of(shared) for _ in range(3)]
    for t, present in enumerate(([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2], [0, 2], [0, 1, 2])):
        for k in present:
            people[k].turn(run, k, t, shared, SMALL)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in present]: c)
            run.simulation.round(t)
        for name, old in shared.items():
            counts = sum((~people[k].sent[name]).astype(float) for k in present)
            total = sum(people[k].theta[name].numpy() * ~people[k].sent[name] for k in present)
            shared[name] = torch.from_numpy(np.where(counts > 0, total / np.maximum(counts, 1), old.numpy()))
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, shared[name], 1e-11)
        rows = np.arange(6)
        found = run.personal_logits("personal", {c.id: rows for c in run.clients}, torch.float64)
        for k, person in enumerate(people):
            by_hand.close(found[f"client-{k}"], by_hand.logits(run, person.enter(shared), rows), 1e-10)
    for k, person in enumerate(people):
        masks = own_masks(run, k)
        assert masks
        for name, mask in masks.items():
            assert np.array_equal(mask.numpy(), person.mask[name])
    assert [float(np.mean(p.mask["head/classifier/weight"])) for p in people] == pytest.approx([0.58, 0.58, 0.44], abs=0.01)


def test_shares_are_those_of_the_card_and_stop_beyond_the_limit() -> None:
    run = federation(replace(SMALL, every=1, epochs=1.0), rounds=9)
    seen: list[Named] = []
    for t in range(9):
        run.simulation.round(t)
        seen.append(own_masks(run, 0))
    assert not seen[0], "none before the first turn is over"
    for n in range(1, 9):
        for name, mask in seen[n].items():
            wanted = 1 - 0.75 ** min(n, 6)  # 25, 43.75, 57.8, 68.4, 76.3 and 82.2 per cent, which is beyond 80
            assert float(mask.double().mean()) == pytest.approx(wanted, abs=1.5 / mask.numel()), name
            assert n == 1 or bool((seen[n - 1][name] <= mask).all()), "masks only grow"
    assert {n.rsplit("/", 1)[1] for n in seen[-1]} == {"A", "B", "weight"}, "no bias is anybody's own"


def test_own_entries_outlive_a_broadcast_bit_for_bit_and_common_ones_are_the_mean() -> None:
    run = federation(replace(SMALL, every=1), rounds=5)
    updates = by_hand.record(run)
    run.run()
    some = 0
    for k in range(3):
        sent, own = own_masks(run, k, "sent/"), own_masks(run, k, "own/")
        pack = run.pack([k], 5)
        for name, mask in sent.items():
            value, mean = pack.value(0, name), run.server.shared[name]
            assert torch.equal(value[mask], own[name])
            assert isinstance(mean, Tensor)
            assert torch.equal(value[~mask], mean[~mask])
            some += int(mask.sum())
            last = updates[-1][k].tensors[name]
            assert isinstance(last, Masked)
            assert torch.equal(last.mask, ~mask), "what counted and what comes back are the same entries"
    assert some > 100


def test_who_keeps_nothing_is_averaged_alike() -> None:
    """In steps of all rows at once no order of rows tells the runs apart."""
    sgd = replace(SMALL, every=EVERY, epochs=3.0, batch=9)
    mine = federation(sgd, rounds=3).run()
    plain = tiny.federation(
        FedAvg(tune=LORA, weighting="uniform", epochs=3.0, batch=9, optim=SGD), "bert", sizes=(6, 5, 7), rounds=3
    ).run()
    for name, value in by_hand.shared(mine).items():
        by_hand.close(value, by_hand.shared(plain)[name], 1e-12)
    momentum = Optim("adamw", lr=1e-2, schedule="linear")
    mine = federation(replace(sgd, optim=momentum), rounds=2).run()
    plain = tiny.federation(
        FedAvg(tune=LORA, weighting="uniform", epochs=3.0, batch=9, optim=momentum), "bert", sizes=(6, 5, 7), rounds=2
    ).run()
    for name, value in by_hand.shared(mine).items():
        by_hand.close(value, by_hand.shared(plain)[name], by_hand.ADAM)


def test_who_keeps_everything_is_trained_alone() -> None:
    run = federation(replace(SMALL, every=1, rate=1.0, limit=1.0, epochs=1.0), rounds=4).run()
    ledger = run.simulation.setup.exchange.ledger
    up = ledger.totals(round=3, phase="train", direction="up").parts
    matrices = [v.numel() for n, v in by_hand.shared(run).items() if v.dim() > 1]
    assert up["head"] == 3 * 8 * CLASSES, "the head's bias, in float64, and no bit of places for none of the entries"
    assert up["lora"] == 0
    before = run.personal_logits("personal")
    for name, value in by_hand.shared(run).items():
        if value.dim() > 1:
            run.server.write(name, torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value))
    after = run.personal_logits("personal")
    assert all(torch.equal(v, after[c]) for c, v in before.items())
    assert matrices


def test_own_and_common_entries_move_by_turns_and_never_together(monkeypatch: pytest.MonkeyPatch) -> None:
    run = federation(replace(SMALL, every=1, epochs=2.0), rounds=3)
    run.run(2)
    masks = {c.id: own_masks(run, k) for k, c in enumerate(run.clients)}
    step, moved = Pack.step, []

    def watched(self: Pack, *args: Any, **more: Any) -> Tensor:
        before = {n: v.detach().clone() for n, v in self.tensors.items()}
        loss = step(self, *args, **more)
        changed = {n: self.tensors[n].detach() != v for n, v in before.items()}
        mine = [(changed[n][k], m) for k, c in enumerate(self.clients) for n, m in masks[c.id].items()]
        own = any(bool((there & mask).any()) for there, mask in mine)
        common = any(bool((there & ~mask).any()) for there, mask in mine)
        biases = any(bool(v.any()) for n, v in changed.items() if n.endswith("bias"))
        assert common == biases
        moved.append((own, common))
        return loss

    monkeypatch.setattr(Pack, "step", watched)
    run.simulation.round(2)
    a_pass = [4]  # 7 rows, by two
    own, common = [(True, False)] * a_pass[0], [(False, True)] * a_pass[0]
    assert moved == [*own, *common, *own, *common]


def test_passes_that_could_move_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = federation(rounds=1), []
    step = Pack.step
    monkeypatch.setattr(Pack, "step", lambda *a, **more: (steps.append(more["tick"]), step(*a, **more))[1])
    run.run()
    assert steps == [True] * 8


def test_of_equal_movements_no_more_than_their_share_is_taken() -> None:
    run = federation(replace(SMALL, every=1, optim=Optim("sgd", lr=0.0, schedule="constant")), rounds=2).run()
    for name, mask in own_masks(run, 0).items():
        n = round(0.25 * mask.numel())
        assert mask.flatten().tolist() == [True] * n + [False] * (mask.numel() - n), name


def test_movements_are_those_since_a_mask_last_grew() -> None:
    """An entry that moved most before the last growth, and not since, is not what is taken."""
    method = replace(SMALL, every=1, rate=0.01, epochs=1.0)
    run = federation(method, sizes=(6,), rounds=3)
    run.run(2)
    name = "head/classifier/weight"
    memo = memory(run, 0)
    reference, taken = memo[f"reference/{name}"], memo[f"mask/{name}"]
    assert int(taken.sum()) == 1
    run.simulation.round(2)
    now = memory(run, 0)
    moved = (now[f"reference/{name}"] - reference).abs().masked_fill(taken, -1)
    grown = now[f"mask/{name}"] & ~taken
    assert int(grown.sum()) == 1
    assert float(moved[grown].max()) == float(moved.max())


@pytest.fixture(scope="module")
def everybody() -> Plays:
    """Where all are there, masks are at work in the third round."""
    return Plays(GROWING, participation=1.0, dropout=0.0)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_runs_with_masks_at_work_keep_the_laws(law: Law, everybody: Plays) -> None:
    keep(law, everybody)
    sent = everybody.packed.run.server.notes.get("client-3")
    assert any(bool((v != 255).any()) for v in sent.values()), "places of all entries alone would prove nothing"


def test_its_rule_keeps_the_laws_in_packs() -> None:
    laws.check(GROWING, "pack", "return", "sums", "counting", "reading", "roll-back", "single precision", "codecs")


def test_whoever_has_lost_its_memory_begins_with_the_whole_model() -> None:
    run, loop = remote(GROWING, "quant8", model="bert", sizes=(6, 5, 7), rounds=6)
    for t in range(6):
        if t == 4:
            lost = loop.root / "client-1"
            for path in sorted(lost.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            loop.start()
        record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]
    site = loop.sites["client-1"]
    site.store.load(site.client)
    masks = {n: v for n, v in site.client.memo.items() if n.startswith("mask/")}
    assert {round(float(m.double().mean()), 1) for m in masks.values()} in ({0.2}, {0.3}, {0.2, 0.3}), "it has begun anew"
    assert all(bool((v != 0).any(1).all()) for n, v in own_copy(site).items() if n.endswith("/A"))


def own_copy(site: Any) -> Named:
    return {n: v.dense() if isinstance(v, Masked) else v for n, v in site.copy.items()}


def test_bytes_of_several_rounds_are_those_of_entries_and_of_places() -> None:
    """Down come the entries that were sent last and where they are; up go those of now, and where, if a mask has grown."""
    run = federation(replace(SMALL, every=1, epochs=1.0), rounds=6, precision="float32").run()
    ledger = run.simulation.setup.exchange.ledger
    sizes = [v.numel() for v in by_hand.shared(run).values() if v.dim() > 1]

    def left(size: int, times: int) -> int:
        for _ in range(times):
            size -= round(0.25 * size)
        return size

    for t in range(1, 6):
        down, up = max(t - 2, 0), max(t - 1, 0)
        wanted_down = sum(4 * left(s, down) + (-(-s // 8) if down else 0) for s in sizes) + 4 * CLASSES
        wanted_up = sum(4 * left(s, up) + (-(-s // 8) if up else 0) for s in sizes) + 4 * CLASSES
        assert ledger.totals(round=t, phase="train", direction="down").payload == 3 * wanted_down
        assert ledger.totals(round=t, phase="train", direction="up").payload == 3 * wanted_up


def part_of(turn: Turn) -> Sizes:
    """From its third turn on a client has kept a quarter of each matrix once, where L is 1."""
    whole = factors_and_head(turn)
    if turn.t < 2:
        return whole
    matrices = {"lora": lora(2), "head": [CLASSES * D]}
    sizes: Sizes = {p: [s for n in of for s in (n - round(0.25 * n), Bits(n))] for p, of in matrices.items()}
    return {"lora": sizes["lora"], "head": [*sizes["head"], CLASSES]}


SETTINGS = {"tune.kind": "lora", "tune.rank": 2, "tune.at": "q,ffn.in"}
BYTES = Case(SETTINGS, factors_and_head, factors_and_head)
BYTES_VARIANTS = {"growing": Case(SETTINGS | {"every": 1}, factors_and_head, part_of)}
assert HEAD == [CLASSES * D, CLASSES]
