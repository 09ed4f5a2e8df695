"""The simulation engine: batches, precision, faults in the middle of a round, one backbone for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from weft.adaptation.optim import Optim
from weft.federation import plans
from weft.methods import FedIT, FedSALoRA


def small(**changes: object) -> FedIT:
    return FedIT(rank=2, alpha=2, sites="all", batch=3, optim=Optim("adamw", lr=1e-2), **changes)  # type: ignore[arg-type]


def turn(lengths: np.ndarray, t: int, epochs: float, steps: int | None = None, by_length: bool = True) -> list[np.ndarray]:
    return plans.turn(lengths, size=4, seed=0, client="a", turn=t, epochs=epochs, steps=steps, by_length=by_length).batches


@pytest.mark.parametrize("by_length", [True, False])
def test_an_epoch_sees_each_row_once(by_length: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 23)
    seen = np.concatenate(turn(lengths, 3, 1.0, by_length=by_length))
    assert sorted(seen) == list(range(23))


def test_four_turns_of_a_quarter_see_each_row_once() -> None:
    lengths = np.random.default_rng(1).integers(1, 30, 32)
    seen = np.concatenate([b for t in range(4) for b in turn(lengths, t, 0.25)])
    assert sorted(seen) == list(range(32))


def test_two_epochs_in_a_turn_visit_in_different_orders() -> None:
    lengths = np.full(16, 5)
    both = turn(lengths, 0, 2.0)
    assert sorted(np.concatenate(both[:4])) == sorted(np.concatenate(both[4:])) == list(range(16))
    assert [list(b) for b in both[:4]] != [list(b) for b in both[4:]]


def test_steps_go_on_where_the_last_turn_ended() -> None:
    lengths = np.arange(1, 18)
    apart = [b for t in range(5) for b in turn(lengths, t, 1.0, steps=2)]
    together = [b for t in range(2) for b in turn(lengths, t, 1.0)]
    assert [list(b) for b in apart] == [list(b) for b in together]


@pytest.mark.parametrize(("epochs", "steps"), [(2.0, None), (0.5, None), (1.0, 3)])
def test_a_capped_epoch_is_the_beginning_of_a_whole_one(epochs: float, steps: int | None) -> None:
    lengths = np.random.default_rng(3).integers(1, 30, 23)  # six batches an epoch, of which two are taken
    taken = [
        b
        for t in range(4)
        for b in plans.turn(lengths, size=4, seed=0, client="a", turn=t, epochs=epochs, steps=steps, cap=2).batches
    ]
    whole = [plans.epoch_batches(lengths, 4, 0, "a", e)[:2] for e in range(8)]
    assert len(taken) == (12 if steps else 8 * epochs)
    assert [list(b) for b in taken] == [list(b) for two in whole for b in two][: len(taken)]


def test_at_random_rows_of_a_batch_part_in_the_next_epoch_and_by_length_most_stay_together() -> None:
    lengths = np.random.default_rng(4).integers(4, 64, 250)

    def again(by_length: bool) -> float:
        first, second = (plans.epoch_batches(lengths, 32, 0, "a", e, by_length=by_length) for e in (0, 1))
        before, after = ({(a, b) for rows in batches for a in rows for b in rows if a < b} for batches in (first, second))
        return len(before & after) / len(before)

    assert again(by_length=False) < 0.16 < 0.5 < again(by_length=True)


def test_batches_of_like_length_pad_less() -> None:
    lengths = np.random.default_rng(2).integers(1, 100, 64)

    def padded(by_length: bool) -> int:
        return sum(int(lengths[b].max()) * len(b) for b in turn(lengths, 0, 1.0, by_length=by_length))

    assert padded(True) < 0.7 * padded(False)


def test_bfloat16_follows_float32_to_its_own_precision() -> None:
    """8 bits of mantissa: a relative error of 2^-8 per operation; losses of a few steps stay within a few of those."""
    runs = [tiny.federation(small(), precision=p, rounds=2) for p in ("float32", "bfloat16")]
    assert runs[1].bench.backbone.dtype == torch.bfloat16
    losses = []
    for run in runs:
        rounds = [run.simulation.round(t) for t in range(2)]
        losses.append([r["loss"] for r in rounds if r is not None])
        assert all(v.dtype == torch.float32 for v in run.server.shared.values() if isinstance(v, torch.Tensor))
    np.testing.assert_allclose(losses[1], losses[0], rtol=8 * 2**-8)
    assert losses[0] != losses[1]


def test_the_frozen_prefix_changes_no_number() -> None:
    method = FedIT(rank=2, alpha=2, sites="names:layer.2.output.dense", batch=3, optim=Optim("adamw", lr=1e-2))
    on, off = (tiny.federation(method, prefix=p, rounds=2).run() for p in (True, False))
    assert on.bench.prefix is not None
    assert on.bench.prefix.used > 0
    torch.testing.assert_close(on.global_logits(), off.global_logits(), rtol=1e-10, atol=1e-10)


def test_a_client_that_drops_out_has_downloaded_but_left_no_trace() -> None:
    run = tiny.federation(FedSALoRA(rank=2, batch=3, steps=2), rounds=6, dropout=0.5)
    for t in range(6):
        before = dict(run.simulation.setup.store.manifest()["versions"])
        record = run.simulation.round(t)
        assert record is not None
        after = run.simulation.setup.store.manifest()["versions"]
        for client in record["lost"]:
            assert before.get(client) == after.get(client)
        down = run.simulation.setup.exchange.ledger.totals(round=t, phase="train", direction="down").messages
        up = run.simulation.setup.exchange.ledger.totals(round=t, phase="train", direction="up").messages
        assert down == len(record["cohort"])
        assert up <= down - len(record["lost"])
        run.simulation.setup.store.commit()


def test_who_drops_out_does_not_depend_on_who_else_takes_part() -> None:
    lost = [
        {
            (t, c)
            for t in range(4)
            for c in (tiny.federation(small(), rounds=4, dropout=0.4, participation=p).simulation.round(t) or {})["lost"]
        }
        for p in (1.0, 0.5)
    ]
    assert lost[1] <= lost[0]
    assert lost[0]


def test_a_damaged_update_is_refused_and_the_round_is_as_if_it_never_came() -> None:
    def play(spoil: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        run = tiny.federation(small(), rounds=1)
        get = run.simulation.setup.spool.get

        def tampered(client: str) -> bytes | None:
            data = get(client)
            if client != "client-1":
                return data
            return data[:-7] if spoil and data is not None else None

        run.simulation.setup.spool.get = tampered  # type: ignore[method-assign]
        record = run.simulation.round(0)
        assert record is not None
        return {n: v for n, v in run.server.shared.items() if isinstance(v, torch.Tensor)}, record["refused"]

    spoilt, refused = play(True)
    without, nothing = play(False)
    assert list(refused) == ["client-1"]
    assert nothing == {}
    assert all(torch.equal(spoilt[n], without[n]) for n in without)


def test_a_client_without_rows_sends_nothing_and_one_class_is_enough() -> None:
    run = tiny.federation(small(), rounds=1)
    sent: list[str] = []
    put = run.simulation.setup.spool.put
    run.simulation.setup.spool.put = lambda c, d: (sent.append(c), put(c, d))[1]  # type: ignore[method-assign,func-returns-value]
    run.run()
    empty = [c.id for c in run.clients if c.n == 0]
    single = run.clients[3]
    assert len(set(run.bench.table.labels[single.data.train])) == 1
    assert empty
    assert sorted(sent) == sorted(c.id for c in run.clients if c.n)


def test_any_number_of_clients_shares_one_backbone() -> None:
    run = tiny.federation(small(), sizes=(3,) * 20, rounds=1, pack=20)
    before = {id(p): p.data_ptr() for p in run.bench.backbone.model.parameters()}
    run.run()
    assert {id(p): p.data_ptr() for p in run.bench.backbone.model.parameters()} == before
    frozen = set(before.values())
    assert not any(v.data_ptr() in frozen for v in run.server.shared.values() if isinstance(v, torch.Tensor))


# scores -----------------------------------------------------------------------------------------------------------------


def share_of(logits: torch.Tensor, labels: np.ndarray) -> float:
    return float((logits.argmax(1).numpy() == labels).mean())


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora"])
def test_scores_are_those_of_each_ones_own_rows(slug: str) -> None:
    method = small() if slug == "fedit" else FedSALoRA(rank=2, batch=3, optim=Optim("adamw", lr=1e-2))
    run = tiny.federation(method, rounds=2, pack=4).run()
    labels, tests = run.bench.table.labels, run.simulation.setup.tests
    own = {c.id: c.data.test for c in run.clients if len(c.data.test)}
    if slug == "fedit":
        logits = run.global_logits()
        shares = {c: share_of(logits[r], labels[r]) for c, r in own.items()}
        rows = {"global test": tests.test, "validation": tests.val, "new clients": tests.unseen["stranger"]}
        wanted = {(people, "accuracy", "pooled"): share_of(logits[r], labels[r]) for people, r in rows.items()}
        nll = torch.nn.functional.cross_entropy(logits[tests.test].double(), torch.from_numpy(labels[tests.test]))
        wanted["global test", "loss", "pooled"] = float(nll)
    else:
        mine = run.personal_logits("personal", own)
        shares = {c: share_of(mine[c], labels[r]) for c, r in own.items()}
        everyone = torch.cat([mine[c] for c in sorted(own)])
        wanted = {("own test", "accuracy", "pooled"): share_of(everyone, labels[np.concatenate([own[c] for c in sorted(own)])])}
    wanted["own test", "accuracy", "mean over clients"] = float(np.mean(list(shares.values())))
    wanted["own test", "accuracy", "worst client"] = min(shares.values())
    assert len(set(shares.values())) > 1, "clients of one score tell nothing"
    found = {(e.people, e.metric, e.pooling): e.value for e in run.simulation.evaluate(1)}
    assert {k: found[k] for k in wanted} == {k: pytest.approx(v, abs=1e-6) for k, v in wanted.items()}


def test_updates_are_reduced_in_the_order_of_ids_wherever_their_clients_stand() -> None:
    """A sum of floats depends on its order."""
    first, second = (tiny.federation(small(), rounds=2, pack=1) for _ in range(2))
    second.clients.reverse()
    assert second.simulation.setup.federations[0][1] is second.clients
    for run in (first, second):
        run.run()
    assert [c.id for c in first.clients] == [c.id for c in reversed(second.clients)]
    for name, value in first.server.shared.items():
        other = second.server.shared[name]
        assert isinstance(value, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert torch.equal(value, other), name
