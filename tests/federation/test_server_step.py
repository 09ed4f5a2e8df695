"""A server's step towards a mean: each kind by its formula in NumPy, and what it is where nothing is to be done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from sliced import Sliced
from weft.aggregation.mean import WeightedMean
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.robust_mean import Robust
from weft.federation.server import ServerState
from weft.federation.server_step import KINDS, ServerStep
from weft.methods import FedDAT, FedIT, FedRA, RoLoRA
from weft.testing.compare import assert_same, server_state
from weft.testing.plays import shallow
from weft.testing.strangers import by_messages
from weft.testing.watch import Snapshot

STEPS = {
    "avgm": ServerStep("avgm", lr=0.7, beta1=0.6),
    "adam": ServerStep("adam", lr=0.02, beta2=0.8, tau=0.01),
    "yogi": ServerStep("yogi", lr=0.02, beta1=0.5, beta2=0.7, tau=0.01),
    "adagrad": ServerStep("adagrad", lr=0.02, tau=0.01),
}
METHODS: list[Method] = [FedIT(rank=2, batch=3), FedRA(rank=2, batch=3), FedDAT(reduction=8, batch=3), RoLoRA(batch=3, steps=2)]


def federation(method: Method, step: ServerStep, rounds: int = 3, **more: Any) -> tiny.Federation:
    run = tiny.federation(method, shallow(method), rounds=rounds, participation=0.6, **more)
    run.server.step = step
    return run


def by_formula(step: ServerStep, x: np.ndarray, means: list[np.ndarray | None]) -> np.ndarray:
    """Algorithm 2 of Reddi et al., over rounds in which a tensor has a mean or none."""
    m, v = np.zeros_like(x), np.full_like(x, step.tau**2)
    b1 = {"avgm": 0.6, "adam": 0.9, "yogi": 0.5, "adagrad": 0.0}[step.kind]
    for mean in means:
        if mean is None:
            continue
        d = mean - x
        if step.kind == "avgm":
            m = b1 * m + d
            x = x + step.rate * m
            continue
        m = b1 * m + (1 - b1) * d
        if step.kind == "adam":
            v = step.beta2 * v + (1 - step.beta2) * d**2
        elif step.kind == "yogi":
            v = v - (1 - step.beta2) * d**2 * np.sign(v - d**2)
        else:
            v = v + d**2
        x = x + step.rate * m / (np.sqrt(v) + step.tau)
    return x


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("uniform", [False, True])
def test_rounds_with_absent_clients_are_those_of_the_formula(kind: str, uniform: bool) -> None:
    """Of FedRA too, whose clients hold some of the blocks: of a tensor that nobody sent nothing moves, momentum neither."""
    method: Method = FedRA(rank=2, batch=3, capacities=(0.5,), weighting="uniform" if uniform else "examples")
    run = federation(method, STEPS[kind], rounds=4, sizes=(5, 3, 4))
    start, seen = by_hand.shared(run), by_hand.record(run)
    run.run()
    assert any(len(updates) < 3 for updates in seen)
    rare = 0
    for name, value in start.items():
        means: list[np.ndarray | None] = []
        for updates in seen:
            own = [(1.0 if uniform else u.weight, u.tensors[name].numpy()) for u in updates if name in u.tensors]  # type: ignore[union-attr]
            rare += not own
            means.append(sum(w * t for w, t in own) / sum(w for w, _ in own) if own else None)
        wanted = by_formula(STEPS[kind], value.numpy(), means)
        by_hand.close(run.server.shared[name], torch.from_numpy(wanted))  # type: ignore[arg-type]
    assert rare, "the draw must give a block that nobody held"


def test_a_run_of_slices_is_the_formula_of_each_entry() -> None:
    step = STEPS["adam"]
    run = federation(Sliced(), step, rounds=3)
    start, seen = by_hand.shared(run), by_hand.record(run)
    run.run()
    partial = 0
    for name, value in start.items():
        x = value.numpy().copy()
        for entry in np.ndindex(*x.shape):
            means: list[np.ndarray | None] = []
            for updates in seen:
                own = [
                    (u.weight, t[entry].numpy())
                    for u in updates
                    if isinstance(t := u.tensors.get(name), Tensor) and all(i < s for i, s in zip(entry, t.shape, strict=True))
                ]
                partial += 0 < len(own) < len([u for u in updates if name in u.tensors])
                means.append(np.asarray(sum(w * t for w, t in own) / sum(w for w, _ in own)) if own else None)
            x[entry] = by_formula(step, value.numpy()[entry], means)
        by_hand.close(run.server.shared[name], torch.from_numpy(x))  # type: ignore[arg-type]
    assert partial, "some entries must be held by some alone"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_without_momentum_at_a_rate_of_one_it_is_the_mean_bit_for_bit(method: Method, precision: str) -> None:
    states = []
    for step in (ServerStep("avgm", lr=1.0, beta1=0.0), ServerStep()):
        run = tiny.federation(method, shallow(method, precision), rounds=3, participation=0.6, precision=precision)
        run.server.step = step
        states.append({n: v for n, v in server_state(run.run()).items() if n.startswith("shared:")})
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert value.numpy().tobytes() == states[0][name].numpy().tobytes(), name


@pytest.mark.parametrize("kind", STEPS)
def test_in_packs_one_by_one_and_by_messages_it_is_the_same(kind: str) -> None:
    method = FedIT(rank=2, batch=3)
    packed, alone = (federation(method, STEPS[kind], pack=k).run() for k in (6, 1))
    apart = federation(method, STEPS[kind], pack=1)
    by_messages(apart)
    assert_same(server_state(packed), server_state(alone), 1e-8)
    assert_same(server_state(alone), server_state(apart), 1e-12)


@pytest.mark.parametrize("kind", STEPS)
def test_moments_are_in_the_checkpoint_and_go_back_with_the_rest(kind: str) -> None:
    method = FedIT(rank=2, batch=3)
    run, other = (federation(method, STEPS[kind]) for _ in range(2))
    run.simulation.round(0)
    kept = Snapshot.of(run.server)
    assert any(n.startswith("memo:server step/m/") for n in kept.tensors)
    run.simulation.round(1)
    after = server_state(run)
    run.server.roll_back(kept.tensors, kept.plain)
    run.simulation.round(1)
    assert_same(server_state(run), after, 1e-12)
    kept.onto(other.server)
    other.simulation.round(1)
    assert_same(server_state(other), after, 1e-12)


def test_a_round_that_is_undone_has_no_part_in_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    method = FedIT(rank=2, batch=3)
    run = federation(method, STEPS["avgm"])
    run.simulation.round(0)
    before = server_state(run)
    monkeypatch.setattr(ServerStep, "rate", 1e308 * 10)
    record = run.simulation.round(1)
    assert record is not None
    assert "not finite" in record["robust"]["skipped"]
    assert_same(server_state(run), before, 0.0)


def test_it_steps_towards_what_stands_in_for_a_mean() -> None:
    method = FedIT(rank=2, batch=3)
    run = tiny.federation(method, shallow(method), sizes=(5, 4, 6), rounds=1)
    start, seen = by_hand.shared(run), by_hand.record(run)
    run.server.step, run.server.robust = STEPS["avgm"], Robust("median")
    run.run()
    for name, value in start.items():
        middle = torch.stack([u.tensors[name] for u in seen[0]]).median(0).values  # type: ignore[arg-type]
        by_hand.close(run.server.shared[name], value + 0.7 * (middle - value))  # type: ignore[arg-type]


# refused ------------------------------------------------------------------------------------------------------------------


class ByHand(FedIT):
    """Says that sums are enough, and they are, but takes its mean by itself."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        total = WeightedMean()
        for u in updates:
            total.add({n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}, u.weight)
        for name, value in total.result().items():
            server.write(name, value)


def test_a_method_that_takes_its_mean_by_itself_is_refused() -> None:
    with pytest.raises(UserError, match='does not aggregate with the server\'s mean, so server_step = "adam" can do nothing'):
        federation(replace(ByHand(rank=2), batch=3), STEPS["adam"]).run()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "adan"}, r'unknown server step "adan": use none, avgm, adam, yogi, adagrad. Did you mean "adam"'),
        ({"kind": "adam", "lr": -1.0}, "it needs lr > 0, not -1.0"),
        ({"kind": "adam", "beta1": 1.0}, "0 ≤ beta1 < 1"),
        ({"kind": "adam", "beta2": -0.1}, "0 ≤ beta2 < 1"),
        ({"kind": "adam", "tau": 0.0}, "it needs tau > 0"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ServerStep(**settings)


def test_the_usual_settings_are_those_of_the_paper_and_of_its_use_with_lora() -> None:
    assert {k: (ServerStep(k).rate, ServerStep(k).momentum) for k in KINDS[1:]} == {  # type: ignore[arg-type]
        "avgm": (1.0, 0.9),
        "adam": (1e-3, 0.9),
        "yogi": (1e-3, 0.9),
        "adagrad": (1e-3, 0.0),
    }
    assert (ServerStep().beta2, ServerStep().tau) == (0.99, 1e-3)


# entries, and methods, that have no mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_entries_that_nobody_sent_keep_value_and_moments(kind: Any) -> None:
    """And go on from these when somebody sends them again, as if the round between had not been."""
    step, name = ServerStep(kind, lr=0.5, beta1=0.6), "x"
    draw = torch.Generator().manual_seed(0)
    held, first, second, third = (torch.randn(4, generator=draw, dtype=torch.float64) for _ in range(4))
    reached = torch.tensor([True, False, True, False])
    memo: dict[str, Any] = {}
    one = step.taken(memo, name, held, first)
    kept = {n: v.clone() for n, v in memo.items()}
    two = step.taken(memo, name, one, torch.where(reached, second, one + 9), reached)
    assert torch.equal(two[~reached], one[~reached])
    assert kept.keys() == memo.keys()
    assert all(torch.equal(memo[n][~reached], v[~reached]) and not torch.equal(memo[n], v) for n, v in kept.items())
    three = step.taken(memo, name, two, third)
    without = step.taken(kept, name, one, third)
    assert torch.equal(three[~reached], without[~reached])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_entries_that_nobody_has_ever_sent_have_moments_as_at_the_start(kind: Any) -> None:
    step, reached = ServerStep(kind), torch.tensor([True, False])
    memo: dict[str, Any] = {}
    x = step.taken(memo, "x", torch.zeros(2), torch.ones(2), reached)
    assert x[1] == 0
    later, alone = (step.taken(m, "x", torch.zeros(2), torch.ones(2)) for m in (memo, {}))
    assert later[1] == alone[1]
    assert later[0] != alone[0]


def test_a_method_that_is_no_mean_is_refused_a_step() -> None:
    ServerStep().check("flora", sums=False)
    ServerStep("adam").check("fedit", sums=True)
    with pytest.raises(UserError, match=r'flora needs each update by itself .* server_step = "adam" can do nothing'):
        ServerStep("adam").check("flora", sums=False)
