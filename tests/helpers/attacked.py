"""Tiny federations whose updates are kept, as an attack finds them; and what differential privacy makes of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tiny
from weft.audits.audited import Audited
from weft.audits.outcome import Outcome
from weft.backbones.backbone import Backbone
from weft.federation.method import Method
from weft.storage.updates import UpdateKeeper, kept

Paint = Callable[[tiny.Federation], None]


def attacked(
    where: Path,
    method: Method,
    model: str | Backbone = "bert",
    rounds: int = 1,
    at: int = 0,
    spare: int = 0,
    paint: Paint | None = None,
    **more: Any,
) -> Audited:
    """A federation that has been played, with the updates of round ``at``.

    Args:
        spare: rows of each client that are tested on instead of trained on, so that both are of one kind.
        paint: changes its rows before it is played.
    """
    fed = tiny.federation(method, model, rounds=rounds, **more)
    for client in fed.clients if spare else ():
        data = client.data
        client.data = replace(data, train=data.train[:-spare], test=np.concatenate([data.test, data.train[-spare:]]))
        client.n = len(client.data.train)
    if paint is not None:
        paint(fed)
    fed.simulation.setup.keeper = keeper = UpdateKeeper(where / "updates")
    fed.run()
    for client in fed.clients:
        fed.simulation.setup.store.load(client)
    updates = [u for u in kept(keeper.folder, rounds) if u.round == at]
    own = [c.data.test for c in fed.clients]
    strangers = np.unique(np.concatenate([fed.simulation.setup.tests.test, *own]))
    return Audited(method, fed.server, fed.clients, strangers, updates)


def protected(run: Audited, norm: float, noise: float, seed: int = 0) -> Audited:
    """The same run, whose clients clip what they change to a norm and add Gaussian noise of ``noise · norm`` to it."""
    updates = []
    for i, update in enumerate(run.updates):
        stream = torch.Generator().manual_seed(1000 * seed + i)
        moved = run.moved(update)
        whole = sum(float(v.square().sum()) for v in moved.values()) ** 0.5
        tensors = dict(update.tensors)
        for name, change in sorted(moved.items()):
            value = tensors[name]
            assert isinstance(value, Tensor)
            other = change * min(1.0, norm / whole) + noise * norm * torch.randn(
                change.shape, generator=stream, dtype=torch.float64
            )
            tensors[name] = value + (other - change).to(value.dtype)
        updates.append(replace(update, tensors=tensors))
    return replace(run, updates=updates)


def behind_noise(run: Audited, attack: Callable[[Audited], list[Outcome]], noise: float = 1.0) -> float:
    """The mean score of an attack on updates that are clipped to 0.1 and have noise of ``noise`` times that, over ten draws.

    Found is none of them but by luck, which a bound of 95 % allows in one of twenty.
    """
    tries = [attack(protected(run, 0.1, noise, seed))[0] for seed in range(10)]
    assert sum(one.found for one in tries) <= 2
    return float(np.mean([one.score for one in tries]))


def noisy(run: Audited, sd: float, seed: int = 0) -> None:
    """Put Gaussian noise on the model that the server holds."""
    stream = torch.Generator().manual_seed(seed)
    for name, value in sorted(run.server.shared.items()):
        assert isinstance(value, Tensor)
        run.server.write(name, value + sd * torch.randn(value.shape, generator=stream, dtype=torch.float64).to(value.dtype))
