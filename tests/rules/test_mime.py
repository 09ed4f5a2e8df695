"""Mime and MimeLite over a method: their arithmetic in plain PyTorch, and the optimizer over all the data that they mimic."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import ruled
import tiny
from ruled import Values
from sliced import Sliced
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.scope import SHARED
from weft.methods import FedDAT, FedIT, FedSALoRA, SLoRA
from weft.rules import composed
from weft.testing.federation import Federation
from weft.testing.plays import shallow

B1, B2, EPS = 0.9, 0.99, 1e-6
OPTIMIZERS = {
    "plain": Optim("sgd", lr=0.3, weight_decay=0.05),
    "momentum": Optim("sgd", lr=0.1, momentum=0.7, weight_decay=0.05, schedule="constant"),
    "adamw": Optim("adamw", lr=0.01, betas=(B1, B2), eps=EPS, weight_decay=0.1),
    "adam": Optim("adam", lr=0.01, betas=(B1, B2), eps=EPS, weight_decay=0.1),
}
Step = Callable[[Tensor, Tensor, dict[str, Any], float], tuple[Tensor, dict[str, Any]]]


def plain(y: Tensor, g: Tensor, s: dict[str, Any], lr: float) -> tuple[Tensor, dict[str, Any]]:
    return y - lr * (g + 0.05 * y), {}


def momentum(y: Tensor, g: Tensor, s: dict[str, Any], lr: float) -> tuple[Tensor, dict[str, Any]]:
    m = 0.7 * s.get("m", torch.zeros_like(y)) + g + 0.05 * y
    return y - lr * m, {"m": m}


def adamw(y: Tensor, g: Tensor, s: dict[str, Any], lr: float) -> tuple[Tensor, dict[str, Any]]:
    t = s.get("t", 0) + 1
    m = B1 * s.get("m", torch.zeros_like(y)) + (1 - B1) * g
    v = B2 * s.get("v", torch.zeros_like(y)) + (1 - B2) * g * g
    new = y - lr * 0.1 * y
    return new - lr * (m / (1 - B1**t)) / ((v / (1 - B2**t)).sqrt() + EPS), {"m": m, "v": v, "t": t}


def adam(y: Tensor, g: Tensor, s: dict[str, Any], lr: float) -> tuple[Tensor, dict[str, Any]]:
    g = g + 0.1 * y
    t = s.get("t", 0) + 1
    m = B1 * s.get("m", torch.zeros_like(y)) + (1 - B1) * g
    v = B2 * s.get("v", torch.zeros_like(y)) + (1 - B2) * g * g
    return y - lr * (m / (1 - B1**t)) / ((v / (1 - B2**t)).sqrt() + EPS), {"m": m, "v": v, "t": t}


STEPS: dict[str, Step] = {"plain": plain, "momentum": momentum, "adamw": adamw, "adam": adam}


def reference(
    run: Federation, other: Federation, cohorts: list[list[int]], step: Step, uniform: bool, lite: bool
) -> tuple[Any, ...]:
    """x and s after all rounds, by the paper's algorithm; a round is what `cohorts` has of one."""
    sizes = [c.n for c in run.clients]
    x: Values = {n: v.clone() for n, v in by_hand.start_of(other).items()}
    state: dict[str, dict[str, Any]] = {n: {} for n in x}
    base, linear = run.method.optim.lr, run.method.optim.schedule == "linear"
    for t, cohort in enumerate(cohorts):
        full = {k: ruled.slopes(run, x, run.clients[k].data.train, 1.5) for k in cohort}
        c = ruled.mean(full, ruled.weights(sizes, cohort, uniform))
        sent = {}
        for k in cohort:
            steps, y = by_hand.steps_of(other, k, t), dict(x)
            for i, rows in enumerate(steps):
                lr = base * (1 - i / len(steps)) if linear else base
                g = ruled.slopes(run, y, rows, 1.5)
                if not lite:
                    there = ruled.slopes(run, x, rows, 1.5)
                    g = {n: g[n] - there[n] + c[n] for n in g}
                y = {n: step(y[n], g[n], state[n], lr)[0] for n in y}
            sent[k] = y
        state = {n: step(x[n], c[n], state[n], base)[1] for n in x}
        x = ruled.mean(sent, ruled.weights(sizes, cohort, uniform))
    return x, state


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("word", ["mime", "mimelite"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rounds_with_an_absent_client_are_those_of_the_paper(kind: str, word: str, uniform: bool) -> None:
    method = FedIT(rank=2, alpha=3.0, batch=2, optim=OPTIMIZERS[kind], weighting="uniform" if uniform else "examples")
    if (kind, word) == ("plain", "mimelite"):
        with pytest.raises(UserError, match="SGD without momentum, which has no state"):
            composed(method, word)
        return
    exchanges = 6 if word == "mime" else 3
    run, other = ruled.federation(method, word, exchanges), ruled.federation(method, None, 3)
    cohorts = ruled.cohorts(run)
    if word == "mime":
        assert cohorts[::2] == cohorts[1::2]
        cohorts = cohorts[::2]
    x, state = reference(run, other, cohorts, STEPS[kind], uniform, word == "mimelite")
    tolerance = by_hand.ADAM if kind.startswith("adam") else 1e-9
    ruled.same(by_hand.shared(run), x, tolerance)
    for i, moment in enumerate({"plain": "", "momentum": "m", "adamw": "mv", "adam": "mv"}[kind]):
        ruled.same(ruled.of_memo(run, f"moments/{i}"), {n: s[moment] for n, s in state.items()}, tolerance)
    if kind.startswith("adam"):
        assert {float(v) for v in ruled.of_memo(run, "moments/steps").values()} == {3.0}
    assert not any(ruled.remembered(run, word).values()), "its clients remember nothing"


@pytest.mark.parametrize(("kind", "word"), [("momentum", "mime"), ("momentum", "mimelite"), ("adamw", "mime")])
def test_with_one_step_on_all_rows_it_is_the_optimizer_over_all_the_data(kind: str, word: str) -> None:
    optim = OPTIMIZERS[kind].but(weight_decay=0.0, schedule="constant")
    method = FedIT(rank=2, alpha=3.0, batch=16, optim=optim)
    rounds = 4
    run = ruled.federation(method, word, rounds * (2 if word == "mime" else 1), participation=1.0)
    x = {n: v.clone().requires_grad_(True) for n, v in by_hand.start_of(ruled.federation(method, None, 1)).items()}
    everything = torch.cat([torch.from_numpy(c.data.train) for c in run.clients]).numpy()
    if kind == "adamw":
        local: torch.optim.Optimizer = torch.optim.AdamW(x.values(), lr=optim.lr, betas=(B1, B2), eps=EPS, weight_decay=0.0)
    else:
        local = torch.optim.SGD(x.values(), lr=optim.lr, momentum=0.7)
    for _ in range(rounds):
        for n, g in ruled.slopes(run, {n: v.detach() for n, v in x.items()}, everything, 1.5).items():
            x[n].grad = g
        local.step()
    run.run()
    # MimeLite's step is along a client's own gradient: its mean is that of the mean gradient where steps are linear in it
    ruled.same(by_hand.shared(run), {n: v.detach() for n, v in x.items()}, 1e-6 if kind == "adamw" else 1e-9)


@pytest.mark.parametrize("word", ["mime", "mimelite"])
def test_biases_that_do_not_decay_do_not_in_the_servers_momentum_either(word: str) -> None:
    optim = OPTIMIZERS["momentum"].but(weight_decay=0.5, decay_biases=False)
    method = FedIT(rank=2, alpha=3.0, batch=16, optim=optim)
    run = ruled.federation(method, word, 4 * (2 if word == "mime" else 1), participation=1.0)
    x = {n: v.clone().requires_grad_(True) for n, v in by_hand.start_of(ruled.federation(method, None, 1)).items()}
    groups = [
        {"params": [v for v in x.values() if v.dim() > 1], "weight_decay": 0.5},
        {"params": [v for v in x.values() if v.dim() == 1], "weight_decay": 0.0},
    ]
    assert all(g["params"] for g in groups)
    local = torch.optim.SGD(groups, lr=optim.lr, momentum=0.7)
    everything = torch.cat([torch.from_numpy(c.data.train) for c in run.clients]).numpy()
    for _ in range(4):
        for n, g in ruled.slopes(run, {n: v.detach() for n, v in x.items()}, everything, 1.5).items():
            x[n].grad = g
        local.step()
    run.run()
    ruled.same(by_hand.shared(run), {n: v.detach() for n, v in x.items()}, 1e-9)


def test_a_turn_that_moves_nothing_leaves_nothing_behind() -> None:
    """FedDAT's personal adapter, its teacher and its memory are as they were; its gradients are those of its own two losses."""
    made: Any = composed(FedDAT(reduction=8, batch=3), "mimelite")
    run = tiny.federation(made, shallow(made), sizes=(5, 4), rounds=1)
    pack = run.pack()
    before = {n: v.clone() for n, v in pack.tensors.items()}
    found = made.gradients(pack)
    assert all(torch.equal(v, before[n]) for n, v in pack.tensors.items())
    assert not pack.guidance.noted
    assert not pack._optimizers
    assert [len(own) for own in found] == [len([n for n in before if n.startswith("ours/")])] * 2
    assert all(any(bool(v.any()) for v in own.values()) for own in found)


@pytest.mark.parametrize("turn", [{"epochs": 0.5}, {"epochs": 3.0}, {"steps": 1}])
def test_a_clients_gradient_is_that_of_all_its_rows_however_long_its_turn(turn: dict[str, Any]) -> None:
    """Also where others of its pack have done before it has."""
    method = FedIT(rank=2, alpha=3.0, batch=2, optim=OPTIMIZERS["momentum"], **turn)
    run = ruled.federation(method, "mimelite", 1, sizes=(3, 5, 4))
    made: Any = run.method
    x = by_hand.shared(run)
    for client, found in zip(run.clients, made.gradients(run.pack()), strict=True):
        wanted = ruled.slopes(run, x, client.data.train, 1.5)
        ruled.same({n.removeprefix("full-gradient/"): g for n, g in found.items()}, wanted, 1e-9)


@pytest.mark.parametrize("word", ["mime", "mimelite"])
def test_entries_of_which_no_slice_was_sent_keep_their_moments(word: str) -> None:
    turns = 2 if word == "mime" else 1
    run = tiny.federation(composed(Sliced(), word), shallow(Sliced()), rounds=6 * turns, participation=0.17)
    rule: Any = run.method
    held = {c.id: rule.acts_on(run.bench, c.info(rule.info.asks)) for c in run.clients}
    kept = 0
    for t in range(6 * turns):
        before = ruled.of_memo(run, "moments/0")
        record = run.simulation.round(t)
        assert record is not None
        (who,) = record["cohort"]
        for name, now in ruled.of_memo(run, "moments/0").items():
            outside = torch.ones_like(now, dtype=torch.bool)
            if name in held[who]:
                outside[tuple(slice(0, n) for n in held[who][name])] = False
            old = before.get(name, torch.zeros_like(now))
            assert torch.equal(now[outside], old[outside]), name
            kept += int((old[outside] != 0).sum()) if name in held[who] else 0
    assert kept, "nothing was kept where nobody sent"


def test_a_mean_gradient_whose_round_was_never_played_is_not_there_for_the_next() -> None:
    """As after a round of training that was undone: clients of other tensors take part in the following exchange of gradients."""
    run = tiny.federation(composed(Sliced(), "mime"), shallow(Sliced()), sizes=(4, 4, 4), rounds=8, participation=0.34)
    rule: Any = run.method
    of = {c.id: set(rule.acts_on(run.bench, c.info(rule.info.asks))) for c in run.clients}
    found = []
    for t in (0, 2, 4, 6):
        record = run.simulation.round(t)
        assert record is not None
        (who,) = record["cohort"]
        found.append(of[who])
        assert set(ruled.of_memo(run, "mean-gradient")) == of[who]
    assert any(before - after for before, after in pairwise(found))


def test_a_mean_gradient_goes_to_those_alone_all_of_whose_entries_somebody_sent() -> None:
    """Else the steps of a client whose answer was lost would go along a gradient that is 0 where nobody has one."""
    run = tiny.federation(composed(Sliced(), "mime"), shallow(Sliced()), sizes=(4, 4, 4), rounds=2, participation=0.34)
    rule: Any = run.method
    shapes = {c.id: rule.acts_on(run.bench, c.info(rule.info.asks)) for c in run.clients}
    record, plan = run.simulation.round(0), rule.plan(run.server, 1)
    assert record is not None
    run.server.round = plan
    (who,) = record["cohort"]
    withheld = 0
    for info in run.server.clients:
        names = {n.removeprefix("mean-gradient/") for n in rule.send(run.server, info).tensors if n.startswith("mean-gradient/")}
        within = {n: shape for n, shape in shapes[info.id].items() if n in shapes[who]}
        assert names == {n for n, shape in within.items() if all(a <= b for a, b in zip(shape, shapes[who][n], strict=True))}
        withheld += len(within) - len(names)
    assert withheld, "the one that took part has all"


def test_personal_tensors_keep_the_optimizer_that_they_have() -> None:
    method = FedSALoRA(rank=2, batch=3, steps=None, optim=Optim("sgd", lr=0.1, momentum=0.9))
    run = tiny.federation(composed(method, "mimelite"), shallow(method), sizes=(5, 4), rounds=2)
    run.run()
    names = {n for n in run.server.memo if n.startswith("moments/0/")}
    assert names
    assert all(n.endswith("/A") for n in names)


def test_two_exchanges_are_two_of_the_rounds_that_are_asked_for() -> None:
    run = ruled.federation(FedIT(rank=2, batch=3), "mime", 4)
    kinds = [None if (plan := run.method.plan(run.server, t)) is None else plan.kind for t in range(6)]
    assert kinds[::2] == ["gradients", "gradients", None]
    assert kinds[1] == kinds[3] != "gradients"
    assert kinds[5] is None


def test_a_pair_of_exchanges_is_one_of_the_methods_rounds_wherever_it_asks_how_many_there_are() -> None:
    for exchanges, stages in ((8, ["sparse", "switch", "lora", "lora"]), (7, ["sparse", "switch", "lora"]), (2, ["lora"])):
        run = ruled.federation(SLoRA(rank=2, sparse_rounds=9, batch=3), "mime", exchanges)
        plans = [run.method.plan(run.server, t) for t in range(exchanges)]
        assert [p.kind for p in plans[1::2] if p] == stages
        assert {p.kind for p in plans[::2] if p} == {"gradients"}
        assert run.server.rounds == exchanges


def test_what_is_sent() -> None:
    method = FedIT(rank=2, batch=3)  # by AdamW
    for word, kinds in (("mimelite", ["both", "both"]), ("mime", ["gradients", "train", "gradients", "train"])):
        run = ruled.federation(method, word, len(kinds), participation=1.0).run()
        ledger, rounds = run.simulation.setup.exchange.ledger, range(len(kinds))
        size = {p: 3 * 8 * n for p, n in by_hand.elements(method, run.bench.backbone, SHARED, classes=3).items()}
        model, tensors = sum(size.values()), len(run.server.shared)
        state = 2 * model + 3 * 8 * tensors
        for t in rounds:
            up, down = (ledger.totals(round=t, phase="train", direction=d).parts for d in ("up", "down"))
            sent = {n: v for n, v in up.items() if v}, {n: v for n, v in down.items() if v}
            news = size if t >= (1 if word == "mimelite" else 2) else {}
            if kinds[t] == "gradients":
                assert sent == ({"full-gradient": model}, news)
            elif kinds[t] == "train":
                assert sent == (size, {"mean-gradient": model} | ({"moments": state} if t > 1 else {}))
            else:
                assert sent == (size | {"full-gradient": model}, news | ({"moments": state} if t else {}))
