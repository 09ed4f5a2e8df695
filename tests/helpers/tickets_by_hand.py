"""LotteryFL and CELL done again in plain PyTorch and NumPy, a client after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from weft.methods import LotteryFL

Named = dict[str, Tensor]


@dataclass
class Holder:
    """A client: its mask by tensor, what it has left, and what CELL's remembers beside."""

    mask: Named
    left: float = 1.0
    threshold: float = 0.0
    failed: int = 0
    won: list[bool] = field(default_factory=list)

    def ticket(self, values: Named) -> Named:
        return {n: v * self.mask[n] for n, v in values.items()}


def holders(run: tiny.Federation, count: int) -> list[Holder]:
    ones = {n: torch.ones_like(v) for n, v in by_hand.shared(run).items()}
    assert isinstance(run.method, LotteryFL)
    return [Holder(dict(ones), threshold=run.method.threshold) for _ in range(count)]


def accuracy(run: tiny.Federation, k: int, values: Named) -> float:
    rows = run.clients[k].data.val
    return float((by_hand.logits(run, values, rows).argmax(1).numpy() == run.bench.table.labels[rows]).mean())


def prune(method: LotteryFL, who: Holder, values: Named, start: Named) -> Named:
    """The model of a client that has won, before its steps."""
    if who.left <= method.target:
        return values
    who.left *= 1 - method.rate
    for name, value in values.items():
        if value.dim() < 2:
            continue
        alive = np.flatnonzero(who.mask[name].numpy().ravel())
        order = np.argsort(value.abs().numpy().ravel()[alive], kind="stable")
        mask = who.mask[name].clone().flatten()
        mask[alive[order[: int(method.rate * len(alive))]]] = 0
        who.mask[name] = mask.view(value.shape)
    return who.ticket(start if method.rewind else values)


def steps(run: tiny.Federation, k: int, t: int, values: Named, mask: Named) -> Named:
    """Local SGD with momentum, by gradients of what is alive alone."""
    settings = run.method.optim
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    optimizer = torch.optim.SGD(list(leaves.values()), settings.lr, settings.momentum)
    for rows in by_hand.steps_of(run, k, t):
        optimizer.zero_grad()
        F.cross_entropy(by_hand.logits(run, leaves, rows), by_hand.labels(run, rows)).backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            leaf.grad *= mask[name]
        optimizer.step()
    return {n: v.detach() for n, v in leaves.items()}


def mean(old: Named, ends: Sequence[Named], masks: Sequence[Named]) -> Named:
    """Of each entry over those who sent it."""
    found = {}
    for name, value in old.items():
        counts = torch.stack([m[name] for m in masks]).sum(0)
        total = torch.stack([e[name] * m[name] for e, m in zip(ends, masks, strict=True)]).sum(0)
        found[name] = torch.where(counts > 0, total / counts.clamp(min=1), value)
    return found


def played(run: tiny.Federation, present: Sequence[int], t: int) -> None:
    """A round of these clients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in present]: c)
        record = run.simulation.round(t)
    assert record is not None
    assert not record["refused"]


def same(run: tiny.Federation, shared: Named, people: Sequence[Holder]) -> None:
    """What the server holds, and what clients' own models predict."""
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, shared[name], 1e-11)
    rows = np.arange(6)
    found = run.personal_logits("personal", {c.id: rows for c in run.clients}, torch.float64)
    for k, who in enumerate(people):
        by_hand.close(found[f"client-{k}"], by_hand.logits(run, who.ticket(shared), rows), 1e-10)


def memory(run: tiny.Federation, k: int) -> dict[str, object]:
    run.simulation.setup.store.load(run.clients[k])
    return run.clients[k].memo


def masks(run: tiny.Federation, k: int) -> Named:
    return {n.removeprefix("mask/"): v for n, v in memory(run, k).items() if n.startswith("mask/") and isinstance(v, Tensor)}
