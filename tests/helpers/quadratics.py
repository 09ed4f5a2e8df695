"""Clients whose losses are quadratics with minima of their own, so that errors can be followed to the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import tiny
from weft.contract import SHARED, Adaptation, Backbone, Batch, ClientInfo, Optim, Pack, Task, Tuned, Values

SIDE, RATE = 50, 0.05
STEPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 10)
_draw = np.random.default_rng(0)
_turns = [np.linalg.qr(_draw.standard_normal((SIDE, SIDE)))[0] for _ in STEPS]
HESSIANS = np.stack([q @ np.diag(_draw.uniform(2, 10, SIDE)) @ q.T for q in _turns])
CENTRES = _draw.standard_normal((len(STEPS), SIDE))
BEST = np.linalg.solve(HESSIANS.sum(0), np.einsum("kij,kj->i", HESSIANS, CENTRES))
NAME = "x/values/x"


class Quadratic(Tuned):
    """Client i's loss is ½ (x - cᵢ)ᵀ Hᵢ (x - cᵢ), whatever its rows; it has as many batches of one row as it takes steps."""

    batch: int = 1
    optim: Optim = Optim("sgd", lr=RATE, schedule="constant")
    weighting: Any = "uniform"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"x": (Values((("x", (SIDE,)),)), SHARED)}

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        who = [int(c.id.removeprefix("client-")) for c in pack.clients]
        apart = pack.tensors[NAME] - torch.from_numpy(CENTRES[who])
        return batch.of(torch.einsum("ki,kij,kj->k", apart, torch.from_numpy(HESSIANS[who]), apart) / 2)


def slope(i: int, x: np.ndarray) -> np.ndarray:
    return HESSIANS[i] @ (x - CENTRES[i])


def off(x: np.ndarray) -> float:
    """The relative error."""
    return float(np.linalg.norm(x - BEST) / np.linalg.norm(BEST))


def found(run: tiny.Federation) -> np.ndarray:
    value = run.server.shared[NAME]
    assert isinstance(value, Tensor)
    return value.numpy()
