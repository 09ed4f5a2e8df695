"""FedDyn over a method: its arithmetic in plain PyTorch, and that the server's state is the mean of its clients'."""

from __future__ import annotations

from collections.abc import Iterable
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
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.server import ServerState
from weft.methods import FedDAT, FedIT, FedRA, RoLoRA
from weft.methods.selective.depthfl import DepthFL
from weft.rules import composed
from weft.testing.federation import Federation
from weft.testing.plays import shallow

ALPHA = 0.3
OPTIMIZERS: dict[str, tuple[Optim, Local]] = {
    "sgd": (Optim("sgd", lr=0.3, momentum=0.5, schedule="constant"), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5)),
    "adamw": (Optim("adamw", lr=0.01, eps=1e-6), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, eps=1e-6)),
}


def reference(run: Federation, plain: Federation, cohorts: list[list[int]], local: Local, uniform: bool) -> tuple[Any, ...]:
    """θ, h and the g_k after all rounds, by the paper's algorithm."""
    sizes = [c.n for c in run.clients]
    everybody = ruled.weights(sizes, range(len(sizes)), uniform)
    theta: Values = {n: v.clone() for n, v in by_hand.start_of(plain).items()}
    h, own = ruled.zeros(theta), {k: ruled.zeros(theta) for k in range(len(sizes))}
    linear = run.method.optim.schedule == "linear"
    for t, cohort in enumerate(cohorts):
        sent = {}
        for k in cohort:
            steps = by_hand.steps_of(plain, k, t)
            y = {n: v.clone().requires_grad_(True) for n, v in theta.items()}
            optimizer = local(list(y.values()))
            base = optimizer.param_groups[0]["lr"]
            for i, rows in enumerate(steps):
                optimizer.param_groups[0]["lr"] = base * (1 - i / len(steps)) if linear else base
                for n, g in ruled.slopes(run, {n: v.detach() for n, v in y.items()}, rows, 1.5).items():
                    y[n].grad = g - own[k][n] + ALPHA * (y[n].detach() - theta[n])
                optimizer.step()
            sent[k] = {n: v.detach() for n, v in y.items()}
        for k, value in sent.items():
            own[k] = {n: own[k][n] - ALPHA * (value[n] - theta[n]) for n in theta}
            h = {n: h[n] - ALPHA * everybody[k] * (value[n] - theta[n]) for n in theta}
        mean = ruled.mean(sent, ruled.weights(sizes, cohort, uniform))
        theta = {n: mean[n] - h[n] / ALPHA for n in theta}
    return theta, h, own


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rounds_with_an_absent_client_are_those_of_the_paper(kind: str, uniform: bool) -> None:
    optim, local = OPTIMIZERS[kind]
    method = FedIT(rank=2, alpha=3.0, batch=2, optim=optim, weighting="uniform" if uniform else "examples")
    run = ruled.federation(method, "feddyn", 4, {"feddyn_alpha": ALPHA})
    plain = ruled.federation(method, None, 4)
    theta, h, own = reference(run, plain, ruled.cohorts(run), local, uniform)
    tolerance = by_hand.ADAM if kind == "adamw" else 1e-9
    ruled.same(by_hand.shared(run), theta, tolerance)
    ruled.same(ruled.of_memo(run, "tilt"), h, tolerance)
    for k, found in ruled.remembered(run, "feddyn").items():
        ruled.same(found, own[k], tolerance)


def test_its_pull_is_added_to_that_of_fedprox() -> None:
    optim = Optim("sgd", lr=0.3, momentum=0.5, schedule="constant", prox=0.2)
    method = FedIT(rank=2, batch=2, optim=optim)
    one = ruled.federation(method, "feddyn", 1, {"feddyn_alpha": 0.1})
    two = ruled.federation(replace(method, optim=optim.but(prox=0.1)), "feddyn", 1, {"feddyn_alpha": 0.2})
    three = ruled.federation(replace(method, optim=optim.but(prox=0.0)), "feddyn", 1, {"feddyn_alpha": 0.2})
    states = []
    for run, alpha in ((one, 0.1), (two, 0.2), (three, 0.2)):
        ruled.cohorts(run)
        own = ruled.remembered(run, "feddyn")
        states.append({f"{k}:{n}": -v / alpha for k, some in own.items() for n, v in some.items()})
    ruled.same(states[0], states[1])
    assert not all(torch.allclose(states[2][n], v, atol=1e-9) for n, v in states[0].items())


@pytest.mark.parametrize(
    "method", [FedIT(rank=2, batch=3), FedRA(rank=2, batch=3), RoLoRA(batch=3, steps=2), FedDAT(reduction=8)]
)
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_servers_state_is_the_weighted_mean_of_the_clients_gradients(method: Any, weighting: str) -> None:
    run = tiny.federation(
        composed(replace(method, weighting=weighting), "feddyn"), shallow(method), rounds=4, participation=0.5, pack=3
    ).run()
    parts = ruled.weights([c.n for c in run.clients], range(len(run.clients)), weighting == "uniform")
    own = ruled.remembered(run, "feddyn")
    found = ruled.of_memo(run, "tilt")
    assert found
    for name, value in found.items():
        by_hand.close(value, sum((parts[k] * v[name] for k, v in own.items() if name in v), torch.zeros_like(value)))


def test_a_method_that_tilts_losses_itself_is_refused() -> None:
    """DepthFL has FedDyn of its own, in whose place and beside whose server's state another one would be neither."""
    method = DepthFL(rank=2, batch=3, stages=3)
    assert method.dyn > 0
    with pytest.raises(UserError, match=r'^depthfl adds something of its own to every gradient.* rule = "feddyn" adds'):
        ruled.federation(method, "feddyn", 1, model="bert").run()
    off = ruled.federation(replace(method, dyn=0.0), "feddyn", 2, model="bert").run()
    assert any(bool(v.any()) for v in ruled.of_memo(off, "tilt").values())


class HeadOnce(FedIT):
    """Its server takes the mean of heads in the first round alone."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, only="*" if server.round.index == 0 else "lora/*")


def test_what_the_method_leaves_as_it_was_is_not_moved_by_what_was_added_up_before() -> None:
    run = ruled.federation(HeadOnce(rank=2, batch=3), "feddyn", 3, participation=1.0)
    states = []
    for t in range(3):
        run.simulation.round(t)
        states.append((by_hand.shared(run), ruled.of_memo(run, "tilt")))
    name = "head/classifier/weight"
    assert states[0][1][name].any()
    for now, h in states[1:]:
        assert torch.equal(now[name], states[0][0][name])
        assert torch.equal(h[name], states[0][1][name])


def test_entries_of_which_no_slice_was_sent_are_not_moved_by_what_was_added_up_before() -> None:
    run = tiny.federation(composed(Sliced(), "feddyn"), shallow(Sliced()), rounds=6, participation=0.17)
    rule: Any = run.method
    held = {c.id: rule.acts_on(run.bench, c.info(rule.info.asks)) for c in run.clients}
    still = 0
    for t in range(6):
        before, h = by_hand.shared(run), ruled.of_memo(run, "tilt")
        record = run.simulation.round(t)
        assert record is not None
        (who,) = record["cohort"]
        for name, now in by_hand.shared(run).items():
            outside = torch.ones_like(now, dtype=torch.bool)
            if name in held[who]:
                outside[tuple(slice(0, n) for n in held[who][name])] = False
            assert torch.equal(now[outside], before[name][outside]), name
            still += int((h.get(name, torch.zeros_like(now))[outside] != 0).sum()) if name in held[who] else 0
    assert still, "nothing was added up where nobody sent"


def test_nothing_is_sent_beside_what_the_method_sends() -> None:
    ledgers = []
    for word in ("feddyn", None):
        run = ruled.federation(FedIT(rank=2, batch=3), word, 3).run()
        ledgers.append(run.simulation.setup.exchange.ledger)
    for t in range(3):
        for way in ("up", "down"):
            with_it, without = (x.totals(round=t, phase="train", direction=way).parts for x in ledgers)
            assert {n: v for n, v in with_it.items() if n != "facts"} == {n: v for n, v in without.items() if n != "facts"}
