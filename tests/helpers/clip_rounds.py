"""Rounds of a method that trains prompts of a CLIP, some of them private, beside the turns of its clients by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from weft.federation.layout import named
from weft.federation.message import ClientInfo
from weft.federation.scope import Scope

Values = dict[str, Tensor]
Predict = Callable[[tiny.Federation, Values, np.ndarray, int], Tensor]
"""Logits [n, C] of table rows with the prompts of the k-th client."""

CONTEXT = "text_model.embeddings.token_embedding/context"
"""Behind the name of a part: the tensor of its context."""

COHORTS = ((0, 1, 2, 3, 4, 5), (0, 3, 4), (1, 2, 3), (0, 1, 5))
"""Clients 0, 1, 2 and 5 are away once or twice and come back; the third has one row, the fourth one class, the fifth none."""


def trained(run: tiny.Federation, values: Values, steps: Sequence[np.ndarray], k: int, predict: Predict) -> Values:
    """SGD by PyTorch's own optimizer on the cross-entropy; a ``cosine`` rises over a fifth of the steps before it falls."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    settings, n = run.method.optim, len(steps)
    optimizer = torch.optim.SGD(list(leaves.values()), settings.lr, settings.momentum, weight_decay=settings.weight_decay)

    def share(i: int) -> float:
        rise = (i + 1) / max(0.2 * n, 1)
        return rise if rise < 1 else 0.5 * (1 + math.cos(math.pi * max(i / n - 0.2, 0) / 0.8))

    course = torch.optim.lr_scheduler.LambdaLR(optimizer, share if settings.schedule == "cosine" else lambda i: 1.0)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(predict(run, leaves, rows, k), by_hand.labels(run, rows)).backward()
        optimizer.step()
        course.step()
    return {n: v.detach() for n, v in leaves.items()}


def play(run: tiny.Federation, predict: Predict, tolerance: float = 1e-9) -> tuple[Values, list[Values]]:
    """Play the rounds of :data:`COHORTS`; after each the server and every client hold what means and turns by hand give.

    Returns:
        what the server has, and what each client has of its own.
    """
    common = by_hand.shared(run)
    backbone = run.bench.backbone
    adaptation = run.method.adapt(backbone, run.bench.task, ClientInfo(""))
    stays = [n for n, _, scope in named(adaptation, backbone) if Scope.KEEP in scope]
    own = [{n: by_hand.start_of(run, k)[n] for n in stays} for k in range(len(run.clients))]
    for t, present in enumerate(COHORTS):
        ends = {}
        for k in present:
            if run.clients[k].n:
                ends[k] = trained(run, common | own[k], by_hand.steps_of(run, k, t), k, predict)
                own[k] = {n: ends[k][n] for n in own[k]}
        cohorts.play(run, t, present)
        total = sum(run.clients[k].n for k in ends)
        common = {n: sum(run.clients[k].n / total * end[n] for k, end in ends.items()) for n in common}  # type: ignore[misc]
        assert by_hand.shared(run).keys() == common.keys()
        for n, v in by_hand.shared(run).items():
            by_hand.close(v, common[n], tolerance)
        for k, kept in enumerate(by_hand.kept(run).values()):
            assert kept.keys() in ({}.keys(), own[k].keys())
            for n, v in kept.items():
                by_hand.close(v, own[k][n], tolerance)
    return common, own
