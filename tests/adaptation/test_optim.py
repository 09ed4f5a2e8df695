"""One optimizer over K clients does what K optimizers of torch do, each with its own length, schedule and clipping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.adaptation.optim import Optim, Optimizer
from weft.errors import UserError, WeftError

CLOSE = {"rtol": 0.0, "atol": 1e-12}
STEPS = (6, 2, 4, 1)  # of each client
LATE = (0, 1, 0, 2)  # when each takes its first
K = len(STEPS)
SHAPES = {"a": (3, 4), "bias": (5,)}
ROWS = {"a": torch.tensor([True] * K), "bias": torch.tensor([True, True, False, True])}  # client 2 has no "bias"


def start(name: str) -> Tensor:
    g = torch.Generator().manual_seed(len(name))
    return torch.randn(K, *SHAPES[name], generator=g, dtype=torch.float64)


def loss_of(params: dict[str, Tensor], client: int, step: int) -> Tensor:
    """A loss with curvature that differs between clients and steps; large gradients now and then, for clipping."""
    g = torch.Generator().manual_seed(1000 * client + step)
    total = torch.zeros((), dtype=torch.float64)
    for name, p in sorted(params.items()):
        c = torch.randn(SHAPES[name], generator=g, dtype=torch.float64)
        total = total + (torch.sin(p * c) + 0.1 * (1 + 5 * (step % 2)) * (p - c) ** 2).sum()
    return total


def factor(s: Optim, t: int, total: int) -> float:
    """Share of the learning rate in step t of ``total``, from the definitions."""
    warm = s.warmup * total
    if warm > 0 and t + 1 < max(warm, 1):
        return (t + 1) / max(warm, 1)
    if s.schedule == "constant":
        return 1.0
    gone = min(max((t - warm) / (total - warm), 0.0), 1.0) if total > warm else 0.0
    return 1 - gone if s.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2


def reference(s: Optim) -> dict[str, Tensor]:
    """Every client on its own, by torch."""
    found = {n: start(n) for n in SHAPES}
    for client, total in enumerate(STEPS):
        own = {n: start(n)[client].clone().requires_grad_(True) for n in SHAPES if bool(ROWS[n][client])}
        decayed = [p for n, p in own.items() if s.decay_biases or n != "bias"]
        rest = [p for n, p in own.items() if not (s.decay_biases or n != "bias")]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": s.weight_decay}]
        if rest:
            groups.append({"params": rest, "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if s.kind == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=s.lr, betas=s.betas, eps=s.eps)
        elif s.kind == "adam":
            optimizer = torch.optim.Adam(groups, lr=s.lr, betas=s.betas, eps=s.eps)
        else:
            optimizer = torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum)
        for t in range(total):
            for group in optimizer.param_groups:
                group["lr"] = s.lr * factor(s, t, total)
            optimizer.zero_grad()
            loss_of(own, client, t).backward()
            if s.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(own.values()), s.clip)
            optimizer.step()
        for name, p in own.items():
            found[name][client] = p.detach()
    return found


def made(s: Optim) -> tuple[dict[str, Tensor], Optimizer]:
    params = {n: start(n).requires_grad_(True) for n in SHAPES}
    return params, Optimizer(params, s, torch.tensor(STEPS))


def losses(params: dict[str, Tensor], clients: list[int], steps: list[int] | int) -> Tensor:
    """[k] losses of some clients, each in a step of its own."""
    own = [steps] * len(clients) if isinstance(steps, int) else steps
    pairs = zip(clients, own, strict=True)
    return torch.stack([loss_of({n: p[c] for n, p in params.items() if bool(ROWS[n][c])}, c, t) for c, t in pairs])


def packed(s: Optim) -> dict[str, Tensor]:
    """All clients at once; some join later, and those that have finished leave the batch."""
    params, optimizer = made(s)
    for t in range(max(a + n for a, n in zip(LATE, STEPS, strict=True))):
        clients = [c for c in range(K) if 0 <= t - LATE[c] < STEPS[c]]
        who = torch.tensor(clients) if len(clients) < K else None
        optimizer.step(losses(params, clients, [t - LATE[c] for c in clients]), who, ROWS)
    return {n: p.detach() for n, p in params.items()}


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "adamw"},
        {"kind": "adamw", "weight_decay": 0.1},
        {"kind": "adamw", "weight_decay": 0.1, "decay_biases": False, "betas": (0.8, 0.95), "eps": 1e-3},
        {"kind": "adam"},
        {"kind": "adam", "weight_decay": 0.1},
        {"kind": "adam", "weight_decay": 0.1, "decay_biases": False, "betas": (0.8, 0.95), "eps": 1e-3},
        {"kind": "sgd"},
        {"kind": "sgd", "momentum": 0.9},
        {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.05},
        {"kind": "sgd", "weight_decay": 0.05, "decay_biases": False},
    ],
)
def test_a_pack_equals_torch_optim_client_by_client(
    kind: dict[str, Any], clip: float | None, schedule: str, warmup: float
) -> None:
    s = Optim(lr=0.05, clip=clip, schedule=schedule, warmup=warmup, **kind)
    got, expected = packed(s), reference(s)
    for name in SHAPES:
        torch.testing.assert_close(got[name], expected[name], **CLOSE)
    assert torch.equal(got["bias"][2], start("bias")[2])
    for name in SHAPES:
        assert not torch.equal(got[name][0], start(name)[0])


@settings(max_examples=60)
@given(
    lr=st.floats(1e-4, 1.0),
    decay=st.floats(0.0, 0.5),
    momentum=st.floats(0.0, 0.99),
    clip=st.none() | st.floats(0.01, 100.0),
    warmup=st.floats(0.0, 1.0),
    kind=st.sampled_from(["adamw", "adam", "sgd"]),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_same_holds_for_any_setting(
    lr: float, decay: float, momentum: float, clip: float | None, warmup: float, kind: str, schedule: str
) -> None:
    s = Optim(kind, lr=lr * 0.1, weight_decay=decay, momentum=momentum, clip=clip, schedule=schedule, warmup=warmup)
    got, expected = packed(s), reference(s)
    for name in SHAPES:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("schedule", "twin"), [("linear", "linear"), ("cosine", "cosine")])
@pytest.mark.parametrize("total", [1, 3, 10])
def test_schedules_without_warm_up_are_those_of_transformers(schedule: str, twin: str, total: int) -> None:
    from transformers import get_scheduler

    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = get_scheduler(twin, plain, num_warmup_steps=0, num_training_steps=total)
    p = torch.zeros(1, 2, requires_grad=True)
    ours = Optimizer({"p": p}, Optim("sgd", lr=0.3, schedule=schedule), torch.tensor([total]))
    for _ in range(total):
        assert float(ours.rates()[0]) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-15)
        ours.step(p.sum(1), None, {"p": torch.tensor([True])})
        plain.step()
        scheduler.step()


def test_a_rate_with_warm_up_rises_to_the_peak_and_never_beyond() -> None:
    p = torch.zeros(1, 2, requires_grad=True)
    ours = Optimizer({"p": p}, Optim("sgd", lr=1.0, schedule="linear", warmup=0.4), torch.tensor([10]))
    seen = []
    for _ in range(10):
        seen.append(float(ours.rates()[0]))
        ours.step(p.sum(1), None, {"p": torch.tensor([True])})
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-12)
    assert seen[4:] == pytest.approx([1 - i / 6 for i in range(6)], abs=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_clients_that_are_not_in_the_batch_keep_value_and_moments_bit_for_bit(kind: str) -> None:
    params, optimizer = made(Optim(kind, lr=0.1, weight_decay=0.3, momentum=0.9, clip=1.0, schedule="constant"))
    everyone = list(range(K))
    optimizer.step(losses(params, everyone, 0), None, ROWS)
    values = {n: p.detach().clone() for n, p in params.items()}
    moments = {n: [m.clone() for m in ms] for n, ms in optimizer.moments.items()}
    counts = optimizer.steps.clone()
    present = [3, 0]
    optimizer.step(losses(params, present, 1), torch.tensor(present), ROWS)
    for c in (1, 2):
        for n in SHAPES:
            assert torch.equal(params[n][c], values[n][c])
            assert optimizer.steps[optimizer.places[n]][c] == counts[optimizer.places[n]][c]
            for new, old in zip(optimizer.moments[n], moments[n], strict=True):
                assert torch.equal(new[c], old[c])
    for n in SHAPES:
        assert not torch.equal(params[n][0], values[n][0])
        assert not torch.equal(params[n][3], values[n][3])
    assert optimizer.ticks.tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_a_step_of_some_tensors_leaves_the_others_bit_for_bit(kind: str) -> None:
    params, optimizer = made(Optim(kind, lr=0.1, weight_decay=0.3, momentum=0.9))
    everyone = list(range(K))
    optimizer.step(losses(params, everyone, 0), None, ROWS)
    bias, moments = params["bias"].detach().clone(), [m.clone() for m in optimizer.moments["bias"]]
    a = params["a"].detach().clone()
    optimizer.step(losses(params, everyone, 1), None, ROWS, only=["a"], tick=False)
    assert torch.equal(params["bias"], bias)
    assert all(torch.equal(x, y) for x, y in zip(optimizer.moments["bias"], moments, strict=True))
    assert not torch.equal(params["a"], a)
    assert optimizer.ticks.tolist() == [1] * K  # the first of two updates on one batch: the schedule stands still
    assert optimizer.steps[optimizer.places["a"]].tolist() == [2] * K
    assert optimizer.steps[optimizer.places["bias"]].tolist() == [1, 1, 0, 1]
    assert optimizer.moved == {"a", "bias"}


def test_two_phases_on_one_batch_share_moments_and_one_tick_of_the_schedule() -> None:
    """As one torch optimizer that is stepped twice with different parameters' gradients."""
    s = Optim("adamw", lr=0.1, weight_decay=0.1, schedule="linear")
    params, optimizer = made(s)
    everyone = list(range(K))
    for t in range(2):
        optimizer.step(losses(params, everyone, 2 * t), None, ROWS, only=["a"], tick=False)
        optimizer.step(losses(params, everyone, 2 * t + 1), None, ROWS)
    own = {n: start(n)[0].clone().requires_grad_(True) for n in SHAPES}
    twin = torch.optim.AdamW(own.values(), lr=s.lr, weight_decay=s.weight_decay)
    for t in range(2):
        for phase, names in ((0, ["a"]), (1, ["a", "bias"])):
            for group in twin.param_groups:
                group["lr"] = s.lr * factor(s, t, STEPS[0])
            twin.zero_grad()
            slopes = torch.autograd.grad(loss_of(own, 0, 2 * t + phase), [own[n] for n in names])
            for n, g in zip(names, slopes, strict=True):
                own[n].grad = g
            twin.step()
    for n, p in own.items():
        torch.testing.assert_close(params[n][0].detach(), p.detach(), **CLOSE)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_a_tensor_that_the_loss_does_not_touch_never_moves(kind: str) -> None:
    """Weight decay least of all."""
    params, optimizer = made(Optim(kind, lr=0.1, weight_decay=0.5, momentum=0.9))
    optimizer.step(params["a"].square().flatten(1).sum(1), None, ROWS)
    assert torch.equal(params["bias"].detach(), start("bias"))
    assert optimizer.moved == {"a"}


def test_clipping_looks_at_one_client_over_all_its_tensors() -> None:
    slopes = {"a": torch.zeros(K, 3, 4), "bias": torch.zeros(K, 5)}
    slopes["a"][0, 0, 0], slopes["bias"][0, 0] = 3.0, 4.0  # norm 5 together
    slopes["a"][1, 0, 0] = 0.5  # below the limit
    slopes["a"][2, 0, 0], slopes["bias"][2, 0] = 3.0, 400.0  # its bias is not its own: it counts for nothing
    params = {n: torch.zeros(K, *s, requires_grad=True) for n, s in SHAPES.items()}
    optimizer = Optimizer(params, Optim("sgd", lr=1.0, schedule="constant", clip=1.0), torch.tensor(STEPS))
    loss = sum(((params[n] * slopes[n]).flatten(1).sum(1) for n in SHAPES), torch.zeros(K))
    optimizer.step(loss, None, ROWS)
    norms = sum(p.detach().square().flatten(1).sum(1) for p in params.values()).sqrt()  # type: ignore[union-attr]
    assert norms.tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0], abs=1e-6)
    assert float(params["a"].detach()[0, 0, 0]) == pytest.approx(-3 / 5, abs=1e-6)
    assert not params["bias"][2].any()


def test_clipping_looks_at_the_entries_that_may_move_alone() -> None:
    w = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = Optimizer({"a": w}, Optim("sgd", lr=1.0, clip=1.0, schedule="constant"), torch.ones(1))
    slopes = torch.tensor([[3.0, 4.0, 100.0, 100.0]], dtype=torch.float64)
    free = torch.tensor([[True, True, False, False]])
    optimizer.step((slopes * w).sum(1), None, {"a": torch.tensor([True])}, entries={"a": free})
    torch.testing.assert_close(w.detach(), torch.tensor([[-0.6, -0.8, 0.0, 0.0]], dtype=torch.float64), rtol=1e-6, atol=0)


def test_with_learning_rate_zero_nothing_moves() -> None:
    for kind in ("adamw", "adam", "sgd"):
        got = packed(Optim(kind, lr=0.0, weight_decay=0.5, momentum=0.9))
        assert all(torch.equal(got[n], start(n)) for n in SHAPES)


def test_a_step_of_tensors_that_the_optimizer_does_not_hold_is_an_error() -> None:
    params, optimizer = made(Optim())
    with pytest.raises(WeftError, match="no optimizer holds"):
        optimizer.step(losses(params, [0], 0), torch.tensor([0]), ROWS, only=["c"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "adamm"}, 'unknown optimizer "adamm": use adamw, adam, sgd'),
        ({"schedule": "lineer"}, 'unknown schedule "lineer".*Did you mean "linear"'),
        ({"lr": -1.0}, "lr ≥ 0"),
        ({"weight_decay": -0.1}, "weight_decay ≥ 0"),
        ({"warmup": 1.5}, "warmup ≤ 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Optim(**wrong)


def test_tensors_moved_in_many_chunks_are_those_moved_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for entries in (1, 2**24):
        monkeypatch.setattr("weft.adaptation.optim._CHUNK", entries)
        params, optimizer = made(Optim("adamw", lr=0.1, weight_decay=0.3))
        for t in range(3):
            optimizer.step(losses(params, list(range(K)), t), None, ROWS)
        found.append(params)
    for name in SHAPES:
        assert torch.equal(found[0][name], found[1][name])
