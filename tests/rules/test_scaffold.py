"""SCAFFOLD over a method: its arithmetic in plain PyTorch, its control variates, and what a lost answer does to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import by_hand
import ruled
import tiny
from ruled import Local, Values
from sliced import Sliced
from weft.adaptation.optim import Optim
from weft.federation.scope import SHARED
from weft.federation.server_step import ServerStep
from weft.methods import FedDAT, FedIT, FedRA, RoLoRA
from weft.rules import composed
from weft.rules.over import both_ways
from weft.testing.federation import Federation
from weft.testing.plays import shallow
from weft.testing.sites import Loopback, remote

OPTIMIZERS: dict[str, tuple[Optim, Local]] = {
    "sgd": (Optim("sgd", lr=0.3, schedule="constant"), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (
        Optim("sgd", lr=0.1, momentum=0.7, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7, weight_decay=0.01),
    ),
    "adamw": (
        Optim("adamw", lr=0.01, weight_decay=0.1, eps=1e-6),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, eps=1e-6),
    ),
}


def reference(run: Federation, plain: Federation, cohorts: list[list[int]], local: Local, uniform: bool) -> tuple[Any, ...]:
    """x, c and the c_i after all rounds, by the paper's algorithm."""
    sizes = [c.n for c in run.clients]
    everybody = ruled.weights(sizes, range(len(sizes)), uniform)
    x: Values = {n: v.clone() for n, v in by_hand.start_of(plain).items()}
    c, own = ruled.zeros(x), {k: ruled.zeros(x) for k in range(len(sizes))}
    linear = run.method.optim.schedule == "linear"
    for t, cohort in enumerate(cohorts):
        sent, changes = {}, {}
        for k in cohort:
            steps = by_hand.steps_of(plain, k, t)
            y = {n: v.clone().requires_grad_(True) for n, v in x.items()}
            optimizer, far = local(list(y.values())), 0.0
            base = optimizer.param_groups[0]["lr"]
            for i, rows in enumerate(steps):
                lr = base * (1 - i / len(steps)) if linear else base
                optimizer.param_groups[0]["lr"] = lr
                for n, g in ruled.slopes(run, {n: v.detach() for n, v in y.items()}, rows, 1.5).items():
                    y[n].grad = g
                optimizer.step()
                far += lr
                with torch.no_grad():
                    for n, v in y.items():
                        v -= lr * (c[n] - own[k][n])
            sent[k] = {n: v.detach() for n, v in y.items()}
            changes[k] = {n: (x[n] - sent[k][n]) / far - c[n] for n in x}
        x = ruled.mean(sent, ruled.weights(sizes, cohort, uniform))
        for k, change in changes.items():
            own[k] = {n: own[k][n] + change[n] for n in x}
            c = {n: c[n] + everybody[k] * change[n] for n in x}
    return x, c, own


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rounds_with_an_absent_client_are_those_of_the_paper(kind: str, uniform: bool) -> None:
    optim, local = OPTIMIZERS[kind]
    method = FedIT(rank=2, alpha=3.0, batch=2, optim=optim, weighting="uniform" if uniform else "examples")
    run, plain = ruled.federation(method, "scaffold", 4), ruled.federation(method, None, 4)
    x, c, own = reference(run, plain, ruled.cohorts(run), local, uniform)
    tolerance = by_hand.ADAM if kind == "adamw" else 1e-9
    ruled.same(by_hand.shared(run), x, tolerance)
    ruled.same(ruled.of_memo(run, "control"), c, tolerance)
    for k, found in ruled.remembered(run, "scaffold").items():
        ruled.same(found, own[k], tolerance)
    assert max(float(v.abs().max()) for v in c.values()) > 1e-3, "else the corrections are nothing"


@pytest.mark.parametrize("optim", [Optim("sgd", lr=0.3, momentum=0.5), Optim("adamw", lr=0.01, clip=0.5)])
def test_one_client_alone_trains_as_without_the_rule_bit_for_bit(optim: Optim) -> None:
    method = FedIT(rank=2, batch=3, optim=optim)
    about: dict[str, Any] = {"sizes": (7,), "participation": 1.0, "precision": "float32", "model": None}
    found, wanted = (ruled.federation(method, w, 3, **about).run() for w in ("scaffold", None))
    for name, value in by_hand.shared(wanted).items():
        assert torch.equal(found.server.shared[name], value), name  # type: ignore[arg-type]
    assert any(float(v.abs().max()) > 0 for v in ruled.of_memo(found, "control").values())


@pytest.mark.parametrize(
    "method", [FedIT(rank=2, batch=3), FedRA(rank=2, batch=3), RoLoRA(batch=3, steps=2), FedDAT(reduction=8)]
)
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_servers_is_the_weighted_mean_of_the_clients_own(method: Any, weighting: str) -> None:
    made = composed(replace(method, weighting=weighting), "scaffold")
    run = tiny.federation(made, shallow(method), rounds=4, participation=0.5, pack=3).run()
    parts = ruled.weights([c.n for c in run.clients], range(len(run.clients)), weighting == "uniform")
    own = ruled.remembered(run, "scaffold")
    common = ruled.of_memo(run, "control")
    assert common.keys() <= both_ways(run.server.adaptation, run.bench.backbone).keys()
    for name, value in common.items():
        by_hand.close(value, sum((parts[k] * v[name] for k, v in own.items() if name in v), torch.zeros_like(value)))


def test_of_a_slice_it_is_the_mean_over_those_who_hold_it() -> None:
    run = tiny.federation(composed(Sliced(), "scaffold"), shallow(Sliced()), rounds=3, participation=0.7).run()
    own, sizes = ruled.remembered(run, "scaffold"), [c.n for c in run.clients]
    rule: Any = run.method
    held = {k: rule.acts_on(run.bench, c.info(rule.info.asks)) for k, c in enumerate(run.clients)}
    for name, value in ruled.of_memo(run, "control").items():
        total, weight = torch.zeros_like(value), torch.zeros_like(value)
        for k, shapes in held.items():
            if name in shapes:
                inside = tuple(slice(0, s) for s in shapes[name])
                weight[inside] += sizes[k]
                if name in own[k]:
                    total[inside] += sizes[k] * own[k][name]
        by_hand.close(value, total / weight.clamp(min=1))


def test_the_papers_global_rate_is_that_of_a_step_at_the_server() -> None:
    method = FedIT(rank=2, alpha=3.0, batch=2, optim=OPTIMIZERS["sgd"][0])
    run = ruled.federation(method, "scaffold", 1)
    start = by_hand.shared(run)
    run.server.step = ServerStep("avgm", lr=0.5, beta1=0.0)
    plain = ruled.federation(method, None, 1)
    assert ruled.cohorts(run) == ruled.cohorts(plain)
    mean = by_hand.shared(plain)  # in the first round nothing is corrected yet
    ruled.same(by_hand.shared(run), {n: start[n] + 0.5 * (mean[n] - start[n]) for n in start})


def test_what_has_not_gone_anywhere_has_no_mean_step() -> None:
    """Steps at a rate of zero: Σ η_k is 0, and nothing may be divided by it."""
    run = ruled.federation(FedIT(rank=2, batch=2, optim=Optim("sgd", lr=0.0)), "scaffold", 2).run()
    assert all(not v.any() for own in ruled.remembered(run, "scaffold").values() for v in own.values())
    assert all(not v.any() for v in ruled.of_memo(run, "control").values())


# messages ---------------------------------------------------------------------------------------------------------------


def test_what_is_sent_is_twice_the_model_up_and_down() -> None:
    run = ruled.federation(FedIT(rank=2, batch=3), "scaffold", 3, participation=1.0)
    run.run()
    ledger = run.simulation.setup.exchange.ledger
    size = {p: 3 * 8 * n for p, n in by_hand.elements(run.method, run.bench.backbone, SHARED, classes=3).items()}
    model = sum(size.values())
    for t in range(3):
        up, down = (ledger.totals(round=t, phase="train", direction=d).parts for d in ("up", "down"))
        assert {n: v for n, v in up.items() if v} == size | {"change": model}
        assert {n: v for n, v in down.items() if v} == ({} if t == 0 else size | {"control": model})


def test_who_is_sent_a_part_of_the_model_is_sent_the_controls_of_that_part() -> None:
    """FedRA gives each client some blocks, and corrects no step in those that it does not train."""
    method = FedRA(rank=2, batch=3)
    run = ruled.federation(method, "scaffold", 3, participation=1.0, model="bert").run()
    held = {n for n in ruled.of_memo(run, "control") if n.startswith("lora/")}
    plan = run.method.plan(run.server, 1)
    assert plan is not None
    run.server.round, run.server.cohort = plan, list(run.server.clients)
    some = []
    for info in run.server.clients:
        tensors = run.method.send(run.server, info).tensors
        own = {n.removeprefix("control/") for n in tensors if n.startswith("control/lora/")}
        assert own == {n for n in tensors if n.startswith("lora/")}
        some.append(own)
    assert any(set() < own < held for own in some)


def test_nothing_of_the_rule_goes_down_for_a_test() -> None:
    run = ruled.federation(FedIT(rank=2, batch=3), "scaffold", 1).run()
    sent = [run.method.send(run.server, info) for info in run.server.clients]
    assert all(any(n.startswith("control/") for n in message.tensors) for message in sent)
    for info in run.server.clients:
        message = run.method.send_to_test(run.server, info)
        assert not [n for n in message.tensors if n.startswith("control/")]


# lost answers -------------------------------------------------------------------------------------------------------------


class Forgetful(Loopback):
    """Some sites train and save, and their answers are lost on the way."""

    def __init__(self, run: Federation):
        super().__init__(run)
        self.lost: set[str] = set()

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        return {c: raw for c, raw in super().ask(questions).items() if c not in self.lost}


class Sites:
    """A federation of three sites.

    Attributes:
        transport: where answers may be lost, and sites may come later.
    """

    def __init__(self, method: Any):
        self.run, loop = remote(method, model=shallow(method), sizes=ruled.SIZES, rounds=5)
        self.transport = Forgetful(self.run)
        self.transport.sites = loop.sites
        self.run.simulation.turns.transport = self.transport  # type: ignore[attr-defined]

    def own(self, k: int) -> Values:
        """c_k."""
        site = self.transport.sites[f"client-{k}"]
        site.store.load(site.client)
        return {n.removeprefix("scaffold/now/"): v for n, v in site.client.memo.items() if n.startswith("scaffold/now/")}

    def apart(self, who: tuple[int, ...] = (0, 1, 2)) -> float:
        """How far c is from the mean of the c_i."""
        parts, own = ruled.weights(ruled.SIZES, who, False), {k: self.own(k) for k in who}
        zero = torch.zeros((), dtype=torch.float64)
        return max(
            float((v - sum(parts[k] * own[k].get(n, zero) for k in who)).abs().max())
            for n, v in ruled.of_memo(self.run, "control").items()
        )


PLAIN = FedIT(rank=2, batch=2, optim=OPTIMIZERS["sgd"][0])


def test_an_answer_that_is_lost_is_taken_back_at_its_client() -> None:
    """Else c would be apart from the mean of the c_i for the rest of the run."""
    sites = Sites(composed(PLAIN, "scaffold"))
    sites.run.simulation.round(0)
    assert sites.apart() < 1e-12
    sites.transport.lost = {"client-1"}
    before = sites.own(1)
    sites.run.simulation.round(1)
    assert sites.apart() > 1e-3
    assert not torch.equal(sites.own(1)["head/classifier/bias"], before["head/classifier/bias"])
    sites.transport.lost = set()
    sites.run.simulation.round(2)
    assert sites.apart() < 1e-12


def test_a_first_answer_that_is_lost_leaves_nothing() -> None:
    sites = Sites(composed(PLAIN, "scaffold"))
    sites.transport.lost = {"client-2"}
    sites.run.simulation.round(0)
    assert sites.apart() > 1e-3
    sites.transport.lost = set()
    sites.run.simulation.round(1)
    assert sites.apart() < 1e-12


def test_a_site_that_joins_later_has_its_share_of_the_mean() -> None:
    sites = Sites(composed(PLAIN, "scaffold"))
    server, people = sites.run.simulation.setup.federations[0]
    late = people.pop()
    server.clients = [c for c in server.clients if c.id != late.id]
    for t in range(2):
        sites.run.simulation.round(t)
    assert sites.apart((0, 1)) < 1e-12
    coming = [late]
    sites.transport.arrivals = lambda clients: [coming.pop() for _ in list(coming)]  # type: ignore[method-assign]
    sites.run.simulation.turns.arrive(2)
    assert [c.id for c in server.clients] == ["client-0", "client-1", "client-2"]
    assert sites.apart() < 1e-12
    for t in range(2, 4):
        sites.run.simulation.round(t)
    assert sites.apart() < 1e-12
    assert sites.own(2)


def test_a_state_from_before_several_joined_is_shared_with_all_of_them() -> None:
    """As after a roll-back, when all who have joined since are welcomed at once."""
    sites = Sites(composed(PLAIN, "scaffold"))
    server, people = sites.run.simulation.setup.federations[0]
    late, everybody = [people.pop(), people.pop()], list(server.clients)
    server.clients = server.clients[:1]
    sites.run.simulation.round(0)
    alone = ruled.of_memo(sites.run, "control")
    server.clients = everybody
    for client in late:
        sites.run.method.welcome(server, client)
    for name, value in ruled.of_memo(sites.run, "control").items():
        by_hand.close(value, alone[name] * ruled.SIZES[0] / sum(ruled.SIZES))


def test_a_round_that_is_undone_is_taken_back_at_all_clients() -> None:
    run = ruled.federation(FedIT(rank=2, batch=2, optim=OPTIMIZERS["sgd"][0]), "scaffold", 3, participation=1.0)
    twin = ruled.federation(FedIT(rank=2, batch=2, optim=OPTIMIZERS["sgd"][0]), "scaffold", 3, participation=1.0)
    for of in (run, twin):
        of.simulation.round(0)
    aggregate = type(run.method).aggregate

    def spoilt(self: Any, server: Any, updates: Any) -> None:
        aggregate(self, server, updates)
        server.shared.update({n: v * float("inf") for n, v in server.shared.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.method), "aggregate", spoilt)
        record = run.simulation.round(1)
    assert record is not None
    assert "skipped" in record["robust"]
    for of in (run, twin):
        of.simulation.round(2)
    ruled.same(by_hand.shared(run), by_hand.shared(twin))
    for found, wanted in zip(
        ruled.remembered(run, "scaffold").values(), ruled.remembered(twin, "scaffold").values(), strict=True
    ):
        ruled.same(found, wanted)
