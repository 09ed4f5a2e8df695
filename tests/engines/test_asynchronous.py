"""Asynchronous aggregation: timelines by hand, plain references that share no code, and what it is where nothing is late."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
import without_waiting
from every_method import METHODS, built, some
from weft.adaptation.optim import Optim
from weft.communication.codecs import codec
from weft.devices import Clock, Spent
from weft.engines.asynchronous import Asynchronous
from weft.engines.scattered import Scattered, Worker
from weft.errors import UserError
from weft.federation.asynchrony import Asynchrony, Late
from weft.federation.client import ClientState
from weft.federation.server_step import ServerStep
from weft.methods import FedAvg, FedIT, FedSALoRA, HeteroFL
from weft.tensors.keyed import numpy_generator
from weft.testing.compare import assert_same, server_state
from weft.testing.workers import Queue
from without_waiting import federation, played

SMALL = FedIT(rank=2, alpha=6.0, batch=4, optim=Optim("sgd", lr=0.1, schedule="constant"))
SECONDS = {"client-0": 2.0, "client-1": 3.0, "client-2": 5.0}
SIZES = (5, 9, 7)
PLAIN = ServerStep("avgm", lr=0.7, beta1=0.0)


def values(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: v for n, v in server_state(run).items() if n.startswith("shared:")}


# when, and how late -------------------------------------------------------------------------------------------------------


def test_a_timeline_of_three_devices_by_hand() -> None:
    """As in tests/devices/test_timeline.py, by the engine: the same clients come at the same times."""
    run = federation(SMALL, Asynchrony("fedasync"), SECONDS, sizes=SIZES, rounds=6)
    lines = played(run, 6)
    came = [
        ("client-0", 2, 0),
        ("client-1", 3, 1),
        ("client-0", 4, 1),
        ("client-2", 5, 3),
        ("client-0", 6, 1),
        ("client-1", 6, 3),
    ]
    assert [(line["cohort"], line["clock"]["now"], line["staleness"]) for line in lines] == [([c], n, {c: s}) for c, n, s in came]
    assert [line["clock"]["seconds"] for line in lines] == [2, 1, 1, 1, 1, 0]
    assert [line["clock"]["slowest"] for line in lines] == [c for c, _, _ in came]


def test_a_buffer_of_two_by_hand() -> None:
    """0 comes at 2 and may not begin again before the update at 3, which 1 fills; then 0 and 1 from version 1, 2 still from 0."""
    run = federation(SMALL, Asynchrony("fedbuff", buffer=2), SECONDS, sizes=SIZES, rounds=3)
    lines = played(run, 3)
    assert [line["clock"]["now"] for line in lines] == [3, 5, 7]
    assert [line["staleness"] for line in lines] == [
        {"client-0": 0, "client-1": 0},
        {"client-0": 0, "client-2": 1},  # 0 again at 5 from version 1; 2 with it from version 0
        {"client-0": 0, "client-1": 1},  # 1 at 6 from version 1; 0 at 7 from version 2
    ]


@pytest.mark.parametrize(("kind", "buffer"), [("fedasync", None), ("fedbuff", 3)])
def test_no_more_are_at_work_than_may_be_and_nobody_counts_twice(kind: Any, buffer: int | None) -> None:
    """Over turns of random lengths; staleness is what the server has done meanwhile."""
    lengths = numpy_generator(7, "lengths").uniform(0.5, 9, 8)
    seconds = {f"client-{i}": float(n) for i, n in enumerate(lengths)}
    run = federation(SMALL, Asynchrony(kind, 4, buffer), seconds, sizes=(4,) * 8, rounds=20, dropout=0.2)
    simulation = run.simulation
    assert isinstance(simulation, Asynchronous)
    begun: dict[str, int] = {}
    own, most = simulation.timeline.start, 0

    def start(client: str, version: int, lasts: float) -> Any:
        nonlocal most
        assert client not in begun
        begun[client], flight = version, own(client, version, lasts)
        most = max(most, len(simulation.timeline.under_way))
        return flight

    simulation.timeline.start = start  # type: ignore[method-assign]
    late = failed = 0
    for t in range(20):
        line = simulation.round(t)
        assert line is not None
        assert len(line["staleness"]) == (buffer or 1)
        assert line["cohort"] == sorted([*line["staleness"], *line["lost"]])
        assert line["staleness"] == {c: t - begun.pop(c) for c in line["staleness"]}
        late, failed = late + sum(line["staleness"].values()), failed + len(line["lost"])
    assert most == 4
    assert late
    assert failed


# what it is where nothing is late -----------------------------------------------------------------------------------------


def test_one_at_a_time_at_full_weight_is_training_one_client_after_another_bit_for_bit() -> None:
    alone = federation(SMALL, Asynchrony("fedasync", 1, mixing=1.0, staleness="constant"), sizes=SIZES, rounds=5)
    lines = played(alone, 5)
    assert all(line["staleness"] == {line["cohort"][0]: 0} for line in lines)
    assert len({line["cohort"][0] for line in lines}) > 1
    model = by_hand.shared(tiny.federation(SMALL, sizes=SIZES, rounds=5))
    rows = tiny.federation(SMALL, sizes=SIZES, rounds=5)
    for t, line in enumerate(lines):
        (client,) = line["cohort"]
        steps = by_hand.steps_of(rows, int(client.removeprefix("client-")), t)
        model = by_hand.train(rows, model, steps, lambda p: torch.optim.SGD(p, 0.1), scale=3.0)
    for name, found in by_hand.shared(alone).items():
        by_hand.close(found, model[name], 1e-12)
    one = tiny.federation(SMALL, sizes=SIZES, rounds=5, participation=1 / 3).run()  # rounds of one, by the same draw
    assert_same(values(one), values(alone), 0.0, "one after another")


@pytest.mark.parametrize(("sizes", "at_work", "equal"), [(SIZES, 3, False), ((5,) * 5, 3, True)])
@pytest.mark.parametrize("step", [ServerStep(), PLAIN, ServerStep("adam", lr=0.02)])
def test_a_full_buffer_is_federated_averaging(sizes: tuple[int, ...], at_work: int, equal: bool, step: ServerStep) -> None:
    """All who are there, however long each takes, and draws among more whose turns take the same time."""
    share = at_work / len(sizes)
    waits = tiny.federation(SMALL, sizes=sizes, rounds=4, participation=share)
    waits.server.step = step
    cohorts = []
    for t in range(4):
        line = waits.simulation.round(t)
        assert line is not None
        cohorts.append(line["cohort"])
    seconds = {f"client-{i}": 1.0 if equal else 1.0 + i for i in range(len(sizes))}
    goes = federation(SMALL, Asynchrony("fedbuff", at_work, at_work), seconds, step, sizes=sizes, rounds=4, participation=share)
    lines = played(goes, 4)
    assert [line["cohort"] for line in lines] == cohorts
    assert not equal or len(set(map(tuple, cohorts))) > 1
    assert all(set(line["staleness"].values()) == {0} for line in lines)
    assert_same(values(waits), values(goes), 1e-12, "where nothing is late")
    down, up = (
        [run.simulation.setup.exchange.ledger.totals(direction=way).parts for run in (waits, goes)] for way in ("down", "up")
    )
    assert up[0] == up[1]
    assert down[0] == down[1]


# a reference that shares no code ------------------------------------------------------------------------------------------


def reference(asynchrony: Asynchrony, rate: float, updates: int) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Both papers' server in plain PyTorch, with a queue of its own: every client is at work from the beginning, and begins again
    as soon as its update counts. Returns the model, and how late the updates of each round were.
    """
    rows = tiny.federation(SMALL, sizes=SIZES, rounds=updates)
    model, lasting = by_hand.shared(rows), list(SECONDS.values())
    queue: list[tuple[float, int, int, dict[str, Tensor], dict[str, Tensor]]] = []

    def begin(now: float, k: int, version: int) -> None:
        steps = by_hand.steps_of(rows, k, version)
        ended = by_hand.train(rows, model, steps, lambda p: torch.optim.SGD(p, 0.1), scale=3.0)
        heapq.heappush(queue, (now + lasting[k], k, version, dict(model), ended))

    for k in range(3):
        begin(0.0, k, 0)
    seen: list[list[int]] = []
    waiting: list[int] = []
    now = 0.0
    for t in range(updates):
        buffer = []
        while len(buffer) < (1 if asynchrony.kind == "fedasync" else 2):
            if waiting and (not queue or queue[0][0] > now):
                for k in waiting:
                    begin(now, k, t)
                waiting = []
            now, k, version, was, ended = heapq.heappop(queue)
            buffer.append((k, t - version, was, ended))
        factor = {
            "constant": lambda late: 1.0,
            "polynomial": lambda late: (1 + late) ** -0.5,
            "hinge": lambda late: 1.0 if late <= 1 else 1 / (10 * (late - 1) + 1),
        }[asynchrony.staleness]
        if asynchrony.kind == "fedasync":
            ((_, late, _, ended),) = buffer
            alpha = 0.6 * factor(late)
            model = {n: (1 - alpha) * x + alpha * ended[n] for n, x in model.items()}
        else:
            rows_of = sum(SIZES[k] for k, *_ in buffer)
            model = {
                n: x + rate * sum(SIZES[k] / rows_of * factor(late) * (ended[n] - was[n]) for k, late, was, ended in buffer)
                for n, x in model.items()
            }
        seen.append(sorted(late for _, late, *_ in buffer))
        waiting = sorted({*waiting, *(k for k, *_ in buffer)})
    return model, seen


@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
@pytest.mark.parametrize(("kind", "buffer"), [("fedasync", None), ("fedbuff", 2)])
def test_the_servers_of_both_papers_in_plain_pytorch(kind: Any, buffer: int | None, staleness: Any) -> None:
    how = Asynchrony(kind, buffer=buffer, staleness=staleness, b=1.0)
    step, rate = (ServerStep(), 1.0) if kind == "fedasync" else (PLAIN, 0.7)
    run = federation(SMALL, how, SECONDS, step, sizes=SIZES, rounds=6)
    lines = played(run, 6)
    model, late = reference(how, rate, 6)
    assert [sorted(line["staleness"].values()) for line in lines] == late
    assert max(max(some) for some in late) >= (3 if kind == "fedasync" else 1)
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, model[name], 1e-10)


def test_what_an_update_counts_by_its_staleness() -> None:
    def of(**more: Any) -> list[float]:
        return [Asynchrony("fedbuff", **more).factor(n) for n in (0, 1, 3, 4, 6)]

    assert of(staleness="constant") == [1] * 5
    assert of() == pytest.approx([1, 2**-0.5, 0.5, 5**-0.5, 7**-0.5])
    assert of(a=1.0) == pytest.approx([1, 1 / 2, 1 / 4, 1 / 5, 1 / 7])
    assert of(staleness="hinge") == pytest.approx([1, 1, 1, 1, 1 / 21])
    assert of(staleness="hinge", a=2.0, b=3.0) == pytest.approx([1, 1, 1, 1 / 3, 1 / 7])


def test_a_slice_moves_the_leading_slice() -> None:
    """now 10, begun from 1, sent 3: a half of the change of 2."""
    held, began, sent = (torch.full(shape, n, dtype=torch.float64) for shape, n in (((3, 4), 10.0), ((2, 4), 1.0), ((2, 4), 3.0)))
    found = Late(0.5, {"w": began}).carried({"w": held}, {"w": sent})
    assert torch.equal(found["w"], torch.full((2, 4), 11.0, dtype=torch.float64))
    assert torch.equal(Late(0.25).carried({"w": held}, {"w": sent})["w"], torch.full((2, 4), 8.25, dtype=torch.float64))


# engines, memory and bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SMALL, FedSALoRA(rank=2, batch=4), HeteroFL(rank=4, batch=4, rates=(1.0, 0.5))])
def test_packs_of_any_size_and_workers_give_the_same(method: Any) -> None:
    how = Asynchrony("fedbuff", 4, 2)

    def workers(setup: Any) -> Scattered:
        ((_, clients),) = setup.federations
        people = [ClientState(c.id, c.n, {}, c.model, data=c.data) for c in clients]
        queue = Queue(*(Worker(method, setup.bench, people, codec("identity")).answer for _ in range(2)))
        return Scattered(setup, queue.ask, queue.workers)

    runs = [
        federation(method, how, sizes=(4, 5, 3, 6, 4), rounds=4, **more)
        for more in ({"pack": 1}, {"pack": 3}, {"pack": 2, "turns": workers})
    ]
    lines = [played(run, 4) for run in runs]
    for other, its in zip(runs[1:], lines[1:], strict=True):
        assert [(one["clock"], one["staleness"]) for one in its] == [(one["clock"], one["staleness"]) for one in lines[0]]
        assert_same(server_state(runs[0]), server_state(other), 1e-9, "in packs")
        assert by_hand.kept(runs[0]).keys() == by_hand.kept(other).keys()
        for way in ("down", "up"):
            here, there = (run.simulation.setup.exchange.ledger for run in (runs[0], other))
            assert [here.totals(round=t, direction=way) for t in range(4)] == [
                there.totals(round=t, direction=way) for t in range(4)
            ]
            assert here.by_client(direction=way) == there.by_client(direction=way)
    assert any(any(line["staleness"].values()) for line in lines[0])


def test_bytes_go_down_when_a_turn_begins_and_up_when_it_ends() -> None:
    run = federation(SMALL, Asynchrony("fedbuff", 3, 2), SECONDS | {"client-3": 40.0}, sizes=(5, 9, 7, 4), rounds=5)
    ledger = run.simulation.setup.exchange.ledger
    spent: list[dict[str, Spent]] = []
    own = Clock.reach

    def reach(self: Clock, now: float, each: dict[str, Spent], began: dict[str, float], last: str | None) -> Any:
        spent.append(each)
        return own(self, now, each, began, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "reach", reach)
        lines = played(run, 5)
    began = [ledger.totals(round=t, phase="train", direction="down").messages for t in range(5)]
    ended = [ledger.totals(round=t, phase="train", direction="up").messages for t in range(5)]
    assert ended == [2] * 5
    simulation = run.simulation
    assert isinstance(simulation, Asynchronous)
    assert sum(began) - sum(ended) == len(simulation.under_way) > 0
    each = {n: 8 * v.numel() for n, v in by_hand.shared(run).items()}
    assert ledger.totals(phase="train", direction="up").payload == 10 * sum(each.values())
    for line, seen in zip(lines, spent, strict=True):
        assert line["clock"]["joules"] == pytest.approx(
            sum(run.simulation.setup.clock.devices[c].joules(s.flops, s.down, s.up) for c, s in seen.items())  # type: ignore[union-attr]
        )
        assert all(s.flops > 0 and s.up > sum(each.values()) for s in seen.values())


def test_what_a_client_remembers_counts_when_its_turn_ends() -> None:
    run = federation(FedSALoRA(rank=2, batch=4), Asynchrony("fedasync"), SECONDS, sizes=SIZES, rounds=3)
    for t, ended in enumerate([{"client-0"}, {"client-0", "client-1"}, {"client-0", "client-1"}]):
        assert run.simulation.round(t) is not None
        run.simulation.setup.store.commit()
        assert {c for c, own in by_hand.kept(run).items() if own} == ended


def test_a_cohort_that_fails_leaves_its_bytes_and_makes_room() -> None:
    run = federation(SMALL, Asynchrony("fedasync", 2), sizes=(4,) * 6, rounds=8, dropout=0.5)
    lines = played(run, 8)
    lost = sum(len(line["lost"]) for line in lines)
    ledger = run.simulation.setup.exchange.ledger
    simulation = run.simulation
    assert isinstance(simulation, Asynchronous)
    down, up = (ledger.totals(phase="train", direction=way).messages for way in ("down", "up"))
    assert lost
    assert down == up + lost + len(simulation.under_way)


@pytest.mark.parametrize("kind", ["fedasync", "fedbuff"])
@pytest.mark.parametrize("slug", some(METHODS, ["fedit", "fedsa-lora", "heterofl", "fedbiot", "fedprompt"]))
def test_every_method_whose_server_need_not_wait(slug: str, kind: Any) -> None:
    """It plays rounds on late updates, by its mean, or says why it waits."""
    method = replace(built(slug), batch=4)
    if method.waits:
        return
    run = without_waiting.federation(method, Asynchrony(kind, 3, 2 if kind == "fedbuff" else None), rounds=4)
    before = values(run)
    lines = played(run, 4)
    assert any(any(line["staleness"].values()) for line in lines)
    assert not any(line["refused"] for line in lines)
    assert any(not torch.equal(v, before[n]) for n, v in values(run).items())


def test_a_buffer_that_nobody_can_fill_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^buffer is 4, and 3 clients can't fill it, .*--buffer\.$"):
        federation(SMALL, Asynchrony("fedbuff", buffer=4), sizes=SIZES)
    assert Asynchrony("fedbuff").taken(40, 0.5) == 10
    assert Asynchrony("fedbuff").taken(40, 0.1) == 4
    assert Asynchrony("fedbuff", 3).taken(40, 1.0) == 3


def test_a_method_that_takes_no_mean_is_refused_in_its_first_round() -> None:
    class Takes(FedAvg):
        """Takes the last model that came."""

        def aggregate(self, server: Any, updates: Any) -> None:
            for update in updates:
                for name, value in update.tensors.items():
                    server.write(name, value)

    run = federation(Takes(batch=4), Asynchrony("fedasync"), SECONDS, sizes=SIZES)
    with pytest.raises(UserError, match=r"does not aggregate with the server's mean, which alone knows .*--aggregation out\.$"):
        run.simulation.round(0)
