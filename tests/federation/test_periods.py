"""Rows that arrive in periods: clients train on those of the round's own, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import pytest

from weft.contract import Method, Pack, Update
from weft.methods import FedDPA, FedIT, FedSALoRA
from weft.testing.compare import assert_same, logits, state
from weft.testing.federation import Federation, federation
from weft.testing.sites import kept, remote
from weft.testing.strangers import by_messages
from weft.testing.workers import scattered

PERIODS, ROUNDS = 2, 4
SEEN: list[tuple[int, str, frozenset[int], int]] = []


class Watched(FedIT):
    """Notes which classes each client trains on."""

    info: ClassVar = FedIT.info
    demands: ClassVar[tuple[str, ...]] = ()

    def train(self, pack: Pack) -> Iterable[Update]:
        for client in pack.clients:
            labels = pack.bench.table.labels[client.data.train]
            SEEN.append((pack.round.index, client.id, frozenset(labels.tolist()), client.n))
        yield from super().train(pack)


def played(method: Method, **more: Any) -> Federation:
    return federation(method, rounds=ROUNDS, periods=PERIODS, **more).run()


def test_clients_train_on_the_rows_of_the_period_and_count_no_others() -> None:
    SEEN.clear()
    run = played(Watched(rank=2))
    labels = run.bench.table.labels
    for t, name, classes, n in SEEN:
        client = next(c for c in run.clients if c.id == name)
        every = client.data.train if client.data.every is None else client.data.every
        wanted = [y for y in labels[every] if y % PERIODS == t // 2]
        assert classes == set(wanted)
        assert n == len(wanted)
    assert {t for t, *_ in SEEN} == set(range(ROUNDS))
    assert any(n == 0 for *_, n in SEEN)


def test_a_period_is_the_same_as_a_federation_that_has_these_rows_alone() -> None:
    method = FedIT(rank=2, weighting="examples")
    whole = played(method)
    alone = federation(method, rounds=ROUNDS)
    of_row = whole.bench.table.labels % PERIODS
    everything = {c.id: c.data for c in alone.clients}
    for t in range(ROUNDS):
        for client in alone.clients:
            mine = everything[client.id].train
            train = mine[of_row[mine] == t // 2]
            client.data, client.n = type(client.data)(train, client.data.val, client.data.test), len(train)
        assert alone.simulation.round(t) is not None
    assert_same(state(whole), state(alone), 0.0)


ENGINES: dict[str, Callable[..., Federation]] = {
    "sites": lambda method, **more: remote(method, **more)[0].run(),
    "workers": lambda method, **more: scattered(method, **more)[0].run(),
    "packs of two": lambda method, **more: federation(method, pack=2, **more).run(),
}


@pytest.mark.parametrize("method", [FedIT(rank=2), FedSALoRA(rank=2), FedDPA(rank=2)], ids=lambda m: m.info.slug)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_same(engine: str, method: Method) -> None:
    here = played(method, pack=1)
    there = ENGINES[engine](method, rounds=ROUNDS, periods=PERIODS)
    assert_same(here.server.shared, there.server.shared, 1e-12)  # type: ignore[arg-type]
    if engine != "sites":
        assert_same(state(here), state(there), 1e-12)


def test_sites_remember_what_clients_here_do() -> None:
    here = played(FedSALoRA(rank=2))
    _, loop = (pair := remote(FedSALoRA(rank=2), rounds=ROUNDS, periods=PERIODS))[0].run(), pair[1]
    wanted = {n: v for n, v in state(here).items() if n in kept(loop)}
    assert wanted
    assert_same(wanted, {n: v for n, v in kept(loop).items() if n in wanted}, 1e-12)


def test_message_by_message_is_the_same() -> None:
    run = federation(FedSALoRA(rank=2), rounds=ROUNDS, periods=PERIODS)
    by_messages(run)
    assert_same(logits(run), logits(played(FedSALoRA(rank=2))), 1e-12)


def test_a_site_scores_its_test_rows_of_each_period_so_far() -> None:
    method = FedSALoRA(rank=2)
    here, (there, _) = federation(method, rounds=ROUNDS, periods=PERIODS), remote(method, rounds=ROUNDS, periods=PERIODS)
    for t in range(ROUNDS):
        for run in (here, there):
            run.simulation.round(t)
        mine, theirs = (
            {
                (e.view, e.people, e.metric): (e.value, e.n)
                for e in run.simulation.evaluate(t)
                if e.people.startswith("period") and e.metric != "macro_f1"  # of which sites tell nothing unless asked
            }
            for run in (here, there)
        )
        assert mine.keys() == theirs.keys()
        assert {people for _, people, _ in mine} == {f"period {p + 1}" for p in range(t // 2 + 1)}
        for name, (value, n) in mine.items():
            assert theirs[name] == (pytest.approx(value, abs=1e-9), n)


def test_test_rows_of_a_period_are_those_that_arrive_in_it() -> None:
    run = played(FedSALoRA(rank=2))
    of = run.bench.table.labels % PERIODS
    own = np.concatenate([c.data.test for c in run.clients])
    for e in run.simulation.evaluate(ROUNDS - 1):
        if e.people.startswith("period") and e.metric == "accuracy":
            assert e.n == (of[own] == int(e.people.split()[1]) - 1).sum()


def test_where_the_global_test_arrives_in_no_period_clients_own_rows_stand_for_it() -> None:
    run = federation(FedIT(rank=2), rounds=ROUNDS, periods=PERIODS)
    assert run.bench.arrivals is not None
    tests = run.simulation.setup.tests
    of = run.bench.arrivals.of_row
    pooled = {e.people: e.n for e in run.run().simulation.evaluate(3) if e.metric == "accuracy"}
    assert pooled["period 1"] == (of[tests.test] == 0).sum()
    of[tests.test] = -1
    pooled = {e.people: e.n for e in run.simulation.evaluate(3) if e.metric == "accuracy"}
    own = np.concatenate([c.data.test for c in run.clients])
    assert pooled["period 1"] == (of[own] == 0).sum() > 0
