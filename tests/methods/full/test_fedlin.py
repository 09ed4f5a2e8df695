"""FedLin against its card: the corrected step, two exchanges a round, and the minimum that it reaches and averaging does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, Case, Sizes, Turn, factors_and_head, lora
from quadratics import BEST, NAME, RATE, SIDE, STEPS, Quadratic, found, off, slope
from weft.contract import MethodInfo, Optim, Tune
from weft.errors import UserError
from weft.methods import FedLin
from weft.testing import laws
from weft.testing.sites import remote

LR = 0.3
SMALL = FedLin(tune=Tune("lora", rank=2, alpha=6.0, at="q"), batch=4, optim=Optim("sgd", lr=LR, schedule="constant"))
SCALE = 3.0
WHOLE = replace(SMALL, batch=50)
"""Batches of all rows, as in the paper."""

test_laws = laws.over(
    FedLin(server_top=0.2), FedLin(client_top=0.9), FedLin(tune=Tune("bottleneck", reduction=8)), FedLin(weighting="examples")
)


# one round by hand ----------------------------------------------------------------------------------------------------


def slopes(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
    """The gradient of the mean loss on these rows."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    loss = F.cross_entropy(by_hand.logits(run, leaves, rows, SCALE), by_hand.labels(run, rows))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(leaves.items(), found, strict=True)}


def mean(each: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    return {n: sum((w * v[n] for w, v in zip(weights, each, strict=True)), torch.zeros(())) / sum(weights) for n in each[0]}


def walked(
    run: tiny.Federation, start: Mapping[str, Tensor], common: Mapping[str, Tensor], steps: Sequence[np.ndarray]
) -> dict[str, Tensor]:
    """A client's corrected steps."""
    y = dict(start)
    for rows in steps:
        here, there = slopes(run, y, rows), slopes(run, start, rows)
        y = {n: v - LR / len(steps) * (here[n] - there[n] + common[n]) for n, v in y.items()}
    return y


def topk(memory: Mapping[str, Tensor], values: Mapping[str, Tensor], share: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is sent of memory + values, and the rest."""
    whole = {n: v + memory.get(n, 0.0) for n, v in values.items()}
    flat = np.sort(np.concatenate([v.abs().numpy().ravel() for v in whole.values()]))
    least = flat[-max(round(share * len(flat)), 1)]
    sent = {n: torch.where(v.abs() >= least, v, 0.0) for n, v in whole.items()}
    return sent, {n: v - sent[n] for n, v in whole.items()}


def answered(record: dict[str, Any] | None, run: tiny.Federation) -> list[int]:
    """Who was there to the end, and has rows."""
    assert record is not None
    there = set(record["cohort"]) - set(record["lost"])
    return [k for k, c in enumerate(run.clients) if c.id in there and c.n]


@pytest.mark.parametrize(
    ("weighting", "server_top", "client_top"),
    [("uniform", 1.0, 1.0), ("examples", 1.0, 1.0), ("uniform", 0.1, 1.0), ("examples", 1.0, 0.2), ("uniform", 0.3, 0.3)],
)
def test_rounds_are_the_papers_with_a_part_of_the_clients_and_some_that_fail(
    weighting: Any, server_top: float, client_top: float
) -> None:
    method = replace(SMALL, weighting=weighting, server_top=server_top, client_top=client_top)
    run = tiny.federation(method, rounds=8, participation=0.6, dropout=0.3, seed=5)
    error: dict[str, Tensor] = {}
    errors: dict[int, dict[str, Tensor]] = {}
    cohorts, sent_no_gradient, walked_no_step, unequal = [], 0, 0, 0
    for t in range(0, 8, 2):
        x = by_hand.shared(run)
        first = run.simulation.round(t)
        assert all(torch.equal(v, x[n]) for n, v in by_hand.shared(run).items()), "a gradient moves nothing"
        gave = answered(first, run)
        each = [slopes(run, x, run.clients[k].data.train) for k in gave]
        if client_top < 1:
            for i, k in enumerate(gave):
                each[i], errors[k] = topk(errors.get(k, {}), each[i], client_top)
        counts = [float(run.clients[k].n) if weighting == "examples" else 1.0 for k in range(len(run.clients))]
        common = mean(each, [counts[k] for k in gave])
        if server_top < 1:
            common, error = topk(error, common, server_top)
        plan = [by_hand.steps_of(run, k, t + 1) for k in range(len(run.clients)) if run.clients[k].n]
        steps = dict(zip([k for k, c in enumerate(run.clients) if c.n], plan, strict=True))
        second = run.simulation.round(t + 1)
        went = answered(second, run)
        wanted = mean([walked(run, x, common, steps[k]) for k in went], [counts[k] for k in went])
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, wanted[name])
        assert first is not None
        assert second is not None
        assert (first["kind"], second["kind"]) == ("gradient", "train")
        assert first["cohort"] == second["cohort"]
        cohorts.append(tuple(first["cohort"]))
        sent_no_gradient += bool(set(went) - set(gave))
        walked_no_step += bool(set(gave) - set(went))
        unequal += len({len(steps[k]) for k in went}) > 1
    assert len(set(cohorts)) > 1
    assert min(sent_no_gradient, walked_no_step, unequal) > 0, "the seed must show all that can happen"
    for name, value in error.items():
        by_hand.close(run.server.memo[f"error/{name}"], value)
    for k, memory in errors.items():
        run.simulation.setup.store.load(run.clients[k])
        for name, value in memory.items():
            by_hand.close(run.clients[k].memo[f"error/{name}"], value)
    assert bool(error) == (server_top < 1)
    assert bool(errors) == (client_top < 1)


# what the paper promises ----------------------------------------------------------------------------------------------


def test_one_step_each_is_gradient_descent_on_the_mean_loss_with_the_whole_rate() -> None:
    run = tiny.federation(WHOLE, rounds=4)
    for t in (0, 2):
        x = by_hand.shared(run)
        common = mean([slopes(run, x, c.data.train) for c in run.clients if c.n], [1.0 for c in run.clients if c.n])
        run.simulation.round(t)
        run.simulation.round(t + 1)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, x[name] - LR * common[name], 1e-12)


def test_a_client_alone_descends_its_own_loss_as_if_nothing_were_corrected() -> None:
    run = tiny.federation(replace(WHOLE, steps=3), sizes=(9,), rounds=2)
    x, rows = by_hand.shared(run), run.clients[0].data.train
    run.run()
    wanted = by_hand.train(run, x, [rows] * 3, lambda p: torch.optim.SGD(p, LR / 3), scale=SCALE)
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, wanted[name], 1e-12)


def test_clients_with_the_same_rows_are_averaged_as_ever() -> None:
    run = tiny.federation(replace(WHOLE, steps=3), sizes=(9, 9, 9), rounds=2)
    for client in run.clients:
        client.data = run.clients[0].data
    x, rows = by_hand.shared(run), run.clients[0].data.train
    run.run()
    wanted = by_hand.train(run, x, [rows] * 3, lambda p: torch.optim.SGD(p, LR / 3), scale=SCALE)
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, wanted[name], 1e-12)


def test_a_client_goes_as_far_in_many_steps_as_in_one() -> None:
    """Where the loss is nearly straight, as it is over short ways."""
    method = replace(WHOLE, optim=WHOLE.optim.but(lr=1e-6))
    ways = []
    for steps in (1, 7):
        run = tiny.federation(replace(method, steps=steps), sizes=(9, 5), rounds=2)
        x = by_hand.shared(run)
        run.run()
        ways.append({n: v - x[n] for n, v in by_hand.shared(run).items()})
    for name, value in ways[0].items():
        torch.testing.assert_close(ways[1][name], value, rtol=1e-4, atol=1e-12)


# quadratics -----------------------------------------------------------------------------------------------------------


class Corrected(Quadratic, FedLin):
    pass


class Averaged(Quadratic):
    info: ClassVar[MethodInfo] = MethodInfo("averaged", "Averaged", "nobody", "full", "x")


def kept(values: np.ndarray, k: int) -> np.ndarray:
    return np.where(np.abs(values) >= np.sort(np.abs(values))[-k], values, 0.0)


def fedlin_by_hand(x: np.ndarray, rounds: int, server: int = SIDE, client: int = SIDE, rate: float = RATE) -> np.ndarray:
    """The algorithm box. ``server``, ``client``: entries that each sends of a gradient."""
    e, es = np.zeros(SIDE), np.zeros((len(STEPS), SIDE))
    for _ in range(rounds):
        sent = np.zeros((len(STEPS), SIDE))
        for i in range(len(STEPS)):
            sent[i] = kept(es[i] + slope(i, x), client)
            es[i] += slope(i, x) - sent[i]
        g = kept(e + sent.mean(0), server)
        e += sent.mean(0) - g
        ends = []
        for i, steps in enumerate(STEPS):
            y = x.copy()
            for _ in range(steps):
                y -= rate / steps * (slope(i, y) - slope(i, x) + g)
            ends.append(y)
        x = np.mean(ends, 0)
    return x


def fedavg_by_hand(x: np.ndarray, rounds: int, rates: Sequence[float]) -> np.ndarray:
    for _ in range(rounds):
        ends = []
        for i, (steps, rate) in enumerate(zip(STEPS, rates, strict=True)):
            y = x.copy()
            for _ in range(steps):
                y -= rate * slope(i, y)
            ends.append(y)
        x = np.mean(ends, 0)
    return x


def test_on_quadratics_it_reaches_the_minimum_where_averaging_stalls() -> None:
    run = tiny.federation(Corrected(), sizes=STEPS, rounds=60)
    start = found(run).copy()
    run.run()
    np.testing.assert_allclose(found(run), fedlin_by_hand(start, 30), rtol=0, atol=1e-12)
    assert off(found(run)) < 1e-3
    assert off(fedlin_by_hand(start, 200)) < 1e-13
    plain = tiny.federation(Averaged(), sizes=STEPS, rounds=30).run()
    np.testing.assert_allclose(found(plain), fedavg_by_hand(start, 30, [RATE] * len(STEPS)), rtol=0, atol=1e-12)
    assert off(found(plain)) > 0.1
    # it is the correction that does it, and not the equal ways alone
    assert off(fedavg_by_hand(start, 200, [RATE / steps for steps in STEPS])) > 1e-2


@pytest.mark.parametrize(("server_top", "client_top"), [(0.1, 1.0), (1.0, 0.1), (0.2, 0.4)])
def test_on_quadratics_a_tenth_of_the_entries_is_the_papers_rule(server_top: float, client_top: float) -> None:
    run = tiny.federation(Corrected(server_top=server_top, client_top=client_top), sizes=STEPS, rounds=24)
    start = found(run).copy()
    run.run()
    wanted = fedlin_by_hand(start, 12, round(SIDE * server_top), round(SIDE * client_top))
    np.testing.assert_allclose(found(run), wanted, rtol=0, atol=1e-12)


def test_what_the_server_leaves_out_costs_time_and_what_clients_leave_out_the_minimum() -> None:
    """The rule that the test above holds the method to, further on, at a rate that a memory of ten rounds can bear."""
    start = np.zeros(SIDE)
    assert off(fedlin_by_hand(start, 1500, server=5, rate=RATE / 10)) < 1e-12
    assert off(fedlin_by_hand(start, 1500, client=5, rate=RATE / 10)) > 1e-2


def test_at_the_minimum_nobody_moves() -> None:
    run = tiny.federation(Corrected(), sizes=STEPS, rounds=2)
    run.server.write(NAME, torch.from_numpy(BEST.copy()))
    run.run()
    np.testing.assert_allclose(found(run), BEST, rtol=0, atol=1e-12)
    plain = tiny.federation(Averaged(), sizes=STEPS, rounds=1)
    plain.server.write(NAME, torch.from_numpy(BEST.copy()))
    plain.run()
    assert np.abs(found(plain) - BEST).max() > 1e-2


def test_what_was_sent_and_what_is_left_are_all_that_there_was() -> None:
    run = tiny.federation(replace(SMALL, server_top=0.05, client_top=0.5), rounds=8)
    seen, sent, whole = by_hand.record(run), {}, {}
    for t in range(8):
        x = by_hand.shared(run)
        run.simulation.round(t)
        if t % 2:
            continue
        shapes = {n: tuple(v.shape) for n, v in x.items()}
        pack = run.pack([0], t + 1)
        for n, v in FedLin._mean(run.method, pack).items():  # type: ignore[arg-type]
            sent[n] = sent.get(n, 0.0) + v[0]
        for u in seen[t]:
            k = next(i for i, c in enumerate(run.clients) if c.id == u.client.id)
            for n, v in slopes(run, x, run.clients[k].data.train).items():
                whole[n] = whole.get(n, 0.0) + v / len(seen[t])
        assert sent.keys() == whole.keys() == shapes.keys()
    rest = {n: run.server.memo[f"error/{n}"].clone() for n in whole}
    people = [c for c in run.clients if c.n]
    for client in people:
        run.simulation.setup.store.load(client)
        for n in rest:
            rest[n] += client.memo[f"error/{n}"] / len(people)
    for n, value in whole.items():
        by_hand.close(sent[n] + rest[n], value, 1e-12)
        assert value.any()


# two exchanges --------------------------------------------------------------------------------------------------------


def test_exchanges_take_turns_and_the_second_has_the_cohort_of_the_first() -> None:
    run = tiny.federation(SMALL, rounds=5)
    plans = [run.method.plan(run.server, t) for t in range(6)]
    assert [p and (p.index, p.kind, p.who) for p in plans] == [
        (0, "gradient", "sample"),
        (1, "train", "same"),
        (2, "gradient", "sample"),
        (3, "train", "same"),
        (4, "gradient", "sample"),
        None,
    ]


def test_a_round_in_which_no_gradient_has_come_moves_nothing_even_if_there_is_an_older_one() -> None:
    run, loop = remote(SMALL, rounds=6)
    everybody = {c.id for c in run.clients}
    moved = []
    for t in range(6):
        loop.silent = everybody if t in (0, 4) else set()
        before = by_hand.shared(run)
        record = run.simulation.round(t)
        assert record is not None
        assert set(record["cohort"]) == everybody
        assert record["refused"] == {}
        moved.append(any(not torch.equal(v, before[n]) for n, v in by_hand.shared(run).items()))
    assert moved == [False, False, False, True, False, False]


def test_of_clients_that_were_told_nothing_none_moves_and_none_sends() -> None:
    run = tiny.federation(SMALL, sizes=(9, 5, 7), rounds=2).run(1)
    pack = run.pack(t=1)
    pack.received[1] = {}
    before = {n: v.clone() for n, v in pack.params("*").items()}
    updates = list(run.method.train(pack))
    assert [u.client.id for u in updates] == ["client-0", "client-2"]
    for name, value in pack.params("*").items():
        assert torch.equal(value[1], before[name][1])
    whole = run.pack(t=1)
    others = {u.client.id: u.tensors for u in run.method.train(whole)}
    for u in updates:
        for name, sent in u.tensors.items():
            wanted = others[u.client.id][name]
            assert isinstance(sent, Tensor)
            assert isinstance(wanted, Tensor)
            by_hand.close(sent, wanted, 1e-12)


def test_the_mean_gradient_goes_to_those_who_train_with_it_and_not_to_those_who_are_scored() -> None:
    run = tiny.federation(SMALL, rounds=4).run(2)
    info = run.clients[0].info(())
    for t, told in ((1, True), (2, False), (3, False)):
        run.server.round = run.method.plan(run.server, t)  # type: ignore[assignment]
        names = run.method.send(run.server, info).tensors
        assert any(n.startswith("mean/") for n in names) == told
        assert not any(n.startswith("mean/") for n in run.method.send_to_test(run.server, info).tensors)


def test_gradients_whose_places_do_not_fit_count_for_nothing() -> None:
    run = tiny.federation(replace(SMALL, client_top=0.3), rounds=2)
    made = list(run.method.train(run.pack(t=0)))
    assert len(made) > 2
    run.method.aggregate(run.server, made[1:])
    wanted = {n: v.clone() for n, v in run.server.memo.items() if isinstance(v, Tensor)}
    short = {n: v[:-1] if len(v) else v for n, v in made[0].tensors.items() if isinstance(v, Tensor)}
    for tensors, facts in ((made[0].tensors, {}), (made[0].tensors, {"places": "zzz"}), (short, made[0].facts)):
        run.method.aggregate(run.server, [replace(made[0], tensors=dict(tensors), facts=facts), *made[1:]])
        assert all(torch.equal(run.server.memo[n], v) for n, v in wanted.items())
    run.method.aggregate(run.server, made)
    assert not all(torch.equal(run.server.memo[n], v) for n, v in wanted.items())


def test_a_share_of_the_entries_is_the_share_of_the_bytes_with_a_bit_for_each_place() -> None:
    counts = {}
    for top in (1.0, 0.1):
        run = tiny.federation(replace(SMALL, server_top=top, client_top=top), sizes=(9, 5), rounds=4).run()
        ledger = run.simulation.setup.exchange.ledger
        counts[top] = [ledger.totals(round=t, direction=d).parts for t, d in ((2, "up"), (3, "down"))]  # type: ignore[arg-type]
    d = sum(v.numel() for v in by_hand.shared(run).values())
    text = len('{"places":""}') + math.ceil(math.ceil(d / 8) * 5 / 4)  # a bit each; base 85 makes five characters of four bytes
    for whole, some, part in zip(counts[1.0], counts[0.1], ("gradient", "mean"), strict=True):
        assert whole[part] == 2 * 8 * d
        assert some[part] == 2 * 8 * round(0.1 * d)
        assert (whole["facts"], some["facts"]) == (0, 2 * text)


# settings -------------------------------------------------------------------------------------------------------------


def test_sums_are_enough_unless_clients_choose_what_they_send() -> None:
    assert [FedLin(server_top=a, client_top=b).sums for a, b in ((1, 1), (0.1, 1), (1, 0.1))] == [True, True, False]


@pytest.mark.parametrize("setting", ["server_top", "client_top"])
def test_a_share_of_no_entries_is_refused(setting: str) -> None:
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match=f"0 < {setting} ≤ 1, not {wrong}"):
            FedLin(**{setting: wrong})


def test_defaults_are_those_of_the_card() -> None:
    method = FedLin()
    # "g_r = (1/m) Σ ∇f_i(x_r) (uniform in the paper)"
    assert method.weighting == "uniform"
    # "Needs plain SGD locally"; "Re-run (…, η̄=0.05)"
    assert method.optim == Optim("sgd", lr=0.05, schedule="constant")
    # sparsification is an option
    assert (method.server_top, method.client_top) == (1.0, 1.0)


# what other tests ask of this method --------------------------------------------------------------------------------------

NUMBERS = sum(lora(2)) + sum(HEAD)


def down(turn: Turn) -> Sizes:
    return {"mean": [*lora(2), *HEAD]} if turn.t % 2 else factors_and_head(turn)


def up(turn: Turn) -> Sizes:
    return factors_and_head(turn) if turn.t % 2 else {"gradient": [*lora(2), *HEAD]}


def few_down(turn: Turn) -> Sizes:
    return {"mean": [round(0.1 * NUMBERS)]} if turn.t % 2 else factors_and_head(turn)


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, down, up, heads=(False, True, False))
BYTES_VARIANTS = {
    "a tenth of the mean gradient": Case({"rank": 2, "at": "q,ffn.in", "server_top": 0.1}, few_down, up),
}
