"""Rules over methods done again in plain PyTorch: the start values, the rows of each step and the cohorts are all they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from weft.federation.method import Method
from weft.rules import composed
from weft.testing.plays import shallow

SIZES = (5, 3, 4)
Values = dict[str, Tensor]
Local = Callable[[list[Tensor]], torch.optim.Optimizer]


def federation(
    method: Method, word: str | None, rounds: int, settings: Mapping[str, Any] | None = None, **more: Any
) -> tiny.Federation:
    """Three clients, of which two take part in a round."""
    made = method if word is None else composed(method, word, **(settings or {}))
    about: dict[str, Any] = {"sizes": SIZES, "participation": 0.67, "model": shallow(method)} | more
    return tiny.federation(made, rounds=rounds, **about)


def cohorts(run: tiny.Federation) -> list[list[int]]:
    """Play all rounds; the positions of who took part in each."""
    found = []
    for t in range(run.rounds):
        record = run.simulation.round(t)
        if record is None:
            break
        found.append([int(c.removeprefix("client-")) for c in record["cohort"]])
    assert any(len(c) < len(run.clients) for c in found) or len(run.clients) == 1
    return found


def remembered(run: tiny.Federation, word: str) -> dict[int, Values]:
    """What each client has added up."""
    found = {}
    for k, client in enumerate(run.clients):
        run.simulation.setup.store.load(client)
        prefix = f"{word}/now/"
        found[k] = {n.removeprefix(prefix): v.clone() for n, v in client.memo.items() if n.startswith(prefix)}
        run.simulation.setup.store.forget(client)
    return found


def of_memo(run: tiny.Federation, group: str) -> Values:
    return {n.removeprefix(f"{group}/"): v for n, v in run.server.memo.items() if n.startswith(f"{group}/")}


def zeros(like: Values) -> Values:
    return {n: torch.zeros_like(v) for n, v in like.items()}


def slopes(run: tiny.Federation, values: Values, rows: np.ndarray, scale: float) -> Values:
    """Gradients of the mean loss over rows."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    loss = F.cross_entropy(by_hand.logits(run, leaves, rows, scale), by_hand.labels(run, rows))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(leaves.items(), found, strict=True)}


def weights(sizes: Sequence[int], who: Sequence[int], uniform: bool) -> dict[int, float]:
    """Of those in a mean."""
    parts = {k: 1.0 if uniform else float(sizes[k]) for k in who}
    return {k: w / sum(parts.values()) for k, w in parts.items()}


def mean(each: Mapping[int, Values], parts: Mapping[int, float]) -> Values:
    names = next(iter(each.values()))
    return {n: sum((parts[k] * each[k][n] for k in each), torch.zeros(())) for n in names}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        by_hand.close(found[name], wanted[name], tolerance)
