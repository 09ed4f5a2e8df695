"""pFedLoRA against its card: turns of an own model and a common adapter beside its head, on backbones of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import Case, Sizes, Turn
from weft.contract import Optim
from weft.errors import UserError
from weft.methods import PFedLoRA

SCALE, LR, MU, DECAY = 3.0, 0.3, 0.25, 0.01
OPTIM = Optim("sgd", lr=LR, weight_decay=DECAY, schedule="constant")
SMALL = PFedLoRA(width=6, common_rank=2, rank=2, alpha=6.0, mu=MU, sites="q", steps=2, epochs=1.0, batch=3, optim=OPTIM)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
Values = dict[str, Tensor]


def logits(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray, joint: bool) -> Tensor:
    """Of the model with its LoRA merged in; with the adapter on what its classifier reads."""
    read: list[Tensor] = []
    classifier = run.bench.backbone.module("classifier")
    hook = classifier.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    own = {n: v for n, v in values.items() if n.startswith(("mine/", "head/"))}
    try:
        found = by_hand.logits(run, own, rows, SCALE)
    finally:
        hook.remove()
    p, v, u = (values[f"theta/logits/{role}"] for role in "PVU")
    return found + read[0] @ p.T @ v.T @ u.T if joint else found


def descend(run: tiny.Federation, values: Values, rows: list[np.ndarray], moving: list[str], loss: str) -> Values:
    leaves = {n: v.detach().clone().requires_grad_(n in moving) for n, v in values.items()}
    optimizer = torch.optim.SGD([leaves[n] for n in moving], LR, weight_decay=DECAY)
    for some in rows:
        optimizer.zero_grad()
        y = by_hand.labels(run, some)
        with_it, alone = (F.cross_entropy(logits(run, leaves, some, joint), y) for joint in (True, False))
        total = {"mixture": (1 - MU) * alone + MU * with_it, "joint": with_it, "sum": alone + with_it}[loss]
        total.backward()
        optimizer.step()
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("loss", ["mixture", "joint", "sum"])
def test_four_rounds_by_hand_with_clients_that_are_away(loss: Any) -> None:
    run = tiny.federation(replace(SMALL, loss=loss), **ABOUT)
    theta = by_hand.shared(run)
    assert set(theta) == {"theta/logits/U", "theta/logits/V"}
    own = [{n: v for n, v in by_hand.start_of(run, k).items() if n not in theta} for k in range(3)]
    for t, present in enumerate(cohorts.ABSENT):
        ends = {}
        for k in present:
            rows = by_hand.steps_of(run, k, t)
            mine = descend(run, theta | own[k], rows, list(own[k]), loss)
            end = descend(run, mine, rows, list(theta), "joint")
            own[k] = {n: end[n] for n in own[k]}
            ends[k] = {n: end[n] for n in theta}
        cohorts.play(run, t, present)
        total = sum(run.clients[k].n for k in present)
        theta = {n: sum(run.clients[k].n / total * e[n] for k, e in ends.items()) for n in theta}  # type: ignore[misc]
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, theta[name], 1e-9)
        for k, kept in enumerate(by_hand.kept(run).values()):
            for name, value in kept.items():
                by_hand.close(value, own[k][name], 1e-9)


def test_a_fresh_adapter_changes_nothing_and_mu_has_no_effect_on_the_first_turn() -> None:
    found = []
    for mu in (0.0, 0.5, 1.0):
        pack = (run := tiny.federation(replace(SMALL, mu=mu), **ABOUT)).pack()
        rows = run.clients[0].data.test
        views = [pack.predict(lambda p, b, v=v: run.method.forward(p, b, v), [rows] * 3) for v in ("personal", "with adapter")]
        assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
        list(run.method.train(pack))
        found.append({n: v.detach() for n, v in pack.params("mine").items()})
    for name, value in found[0].items():
        by_hand.close(found[1][name], value, 1e-12)
        by_hand.close(found[2][name], value, 1e-12)


def test_without_the_adapter_in_the_loss_the_own_model_is_that_of_a_client_alone() -> None:
    run, alone = (tiny.federation(replace(SMALL, mu=0.0), **ABOUT | {"sizes": s}) for s in ((6, 5, 7), (6,)))
    ends = [by_hand.kept(some.run())["client-0"] for some in (run, alone)]
    for name, value in ends[0].items():
        by_hand.close(ends[1][name], value, 1e-9)


@pytest.mark.parametrize("sums", [True])
def test_clients_with_backbones_of_three_kinds_share_the_adapter(sums: bool) -> None:
    backbones = [tiny.backbone("bert"), tiny.backbone("roberta"), tiny.backbone("bert", hidden_size=48, intermediate_size=96)]
    run = tiny.mixed_federation(SMALL, backbones, rounds=2, sizes=(6, 5, 7, 4))
    seen = by_hand.record(run)
    run.run()
    assert run.method.sums is sums
    shapes = [{n: tuple(v.shape) for n, v in u.tensors.items()} for u in seen[1]]
    assert len(shapes) == 4
    assert all(s == {"theta/logits/U": (3, 2), "theta/logits/V": (2, 6)} for s in shapes)
    widths = {kept["theta/logits/P"].shape[1] for kept in by_hand.kept(run).values()}
    assert widths == {32, 48}
    for name, value in by_hand.shared(run).items():
        mean = sum(u.weight * u.tensors[name] for u in seen[1]) / sum(u.weight for u in seen[1])  # type: ignore[operator]
        by_hand.close(value, mean, 1e-12)


def test_a_mu_beyond_one_is_refused() -> None:
    with pytest.raises(UserError, match="mu"):
        replace(SMALL, mu=1.5)


def test_defaults() -> None:
    method = PFedLoRA()
    assert (method.mu, method.loss, method.weighting, method.batch) == (0.5, "mixture", "examples", 512)
    assert method.optim == Optim("sgd", lr=0.01, weight_decay=1e-3, clip=50.0, schedule="constant")


# what other tests ask of this method --------------------------------------------------------------------------------------


def adapter(turn: Turn) -> Sizes:
    """r (d + C), whatever the backbone."""
    return {"theta": [2 * 6, 3 * 2]}


BYTES = Case({"width": 6, "common_rank": 2, "sites": "q"}, adapter, adapter, head_stays=True)
