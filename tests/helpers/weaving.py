"""Packs of clients with random values past the wire, and the same models made by hand, for tests of the arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.layout import Adaptation, named
from weft.federation.message import Value
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.scope import SHARED
from weft.federation.turn import Turn
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank

CLOSE = {"rtol": 0.0, "atol": 1e-11}  # float64 throughout: only the order of sums differs
INDEX = np.array([[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, -1]])


def batch_of(bench: Bench, index: np.ndarray, clients: list[int] | None = None) -> Batch:
    return make_batch(bench.task, bench.table, index, clients, bench.backbone.device)


def alone(bench: Bench, parts: Sequence[Mapping[str, Part]], values: Sequence[Mapping[str, Any]]) -> list[Pack]:
    return [pack_of(bench, [p], [v]) for p, v in zip(parts, values, strict=True)]


def own_model(b: Backbone) -> Any:
    """A copy of the frozen model that a test may change."""
    return copy.deepcopy(b.model)


@torch.no_grad()
def set_head(model: Any, b: Backbone, values: Mapping[str, Any], part: str = "head") -> None:
    for site in b.heads:
        for role, p in model.get_submodule(site.name).named_parameters():
            p.copy_(values[f"{part}/{site.name}/{role}"])


def logits_of(model: Any, bench: Bench, rows: np.ndarray) -> Tensor:
    return model(**bench.table.collate(rows)).logits


def values_for(of: Bench, parts: Mapping[str, Part], seed: int, scale: float = 0.3, delta_rank: int = 2) -> dict[str, Value]:
    """Random values of every tensor of ``parts``; weights of norms stay near 1, biases near where they start."""
    found: dict[str, Value] = {}
    adaptation: Adaptation = {n: (p, SHARED) for n, p in parts.items()}
    for name, init, _ in named(adaptation, of.backbone):
        g = generator(seed, "test", name)
        if init.kind == "lowrank":
            b, a = (torch.randn(s, generator=g) for s in ((init.shape[0], delta_rank), (delta_rank, init.shape[1])))
            found[name] = LowRank(B=(b * scale).to(of.dtype), A=(a * scale).to(of.dtype), scale=0.7)
            continue
        around = of.draw(init, name) if init.kind in ("value", "ones") else torch.zeros(init.shape)
        found[name] = (around + scale * torch.randn(init.shape, generator=g)).to(of.dtype)
    return found


def pack_of(of: Bench, parts: Sequence[Mapping[str, Part]], values: Sequence[Mapping[str, Value]]) -> Pack:
    """A pack of clients whose parts have these values; client i holds the rows 6·i … 6·i + 5 of the table."""
    adaptations: list[Adaptation] = [{n: (p, SHARED) for n, p in each.items()} for each in parts]
    empty = np.zeros(0, np.int64)
    clients = [ClientState(f"client-{i}", 6, data=Splits(np.arange(6 * i, 6 * i + 6), empty, empty)) for i in range(len(parts))]
    return Pack(of, [Turn(*one) for one in zip(clients, adaptations, values, strict=True)], Round(0))


def assert_as_alone(
    bench: Bench, parts: Sequence[Mapping[str, Part]], clients: list[int] | None = None
) -> dict[int, dict[str, Tensor]]:
    """Logits, losses and gradients of each client of a pack, with values of its own, are those that it has alone.

    What pads the tensors of a smaller client, and what belongs to a client that is not in the batch, has no gradient.

    Args:
        parts: of each client, whose rows are those of :data:`INDEX`. clients: who is in the batch, in this order; None = all.

    Returns:
        the gradients of each client of the batch alone, by its place in ``parts``.
    """
    values = [values_for(bench, own, seed=i) for i, own in enumerate(parts)]
    who = list(range(len(parts))) if clients is None else clients
    together, batch = leaves(pack_of(bench, parts, values), "*"), batch_of(bench, INDEX[who], clients)
    out = together(batch)
    losses = together.loss(out, batch)
    slopes = grads(together, losses, "*")
    found: dict[int, dict[str, Tensor]] = {}
    for row, k in enumerate(who):
        (single,) = alone(bench, [parts[k]], [values[k]])
        leaves(single, "*")
        mine = batch_of(bench, INDEX[k : k + 1])
        one = single(mine)
        valid = INDEX[k] >= 0
        torch.testing.assert_close(out.logits[row][valid], one.logits[0][valid], **CLOSE)
        loss = single.loss(one, mine)
        torch.testing.assert_close(losses[row], loss[0], **CLOSE)
        found[k] = {n: g[0] for n, g in grads(single, loss, "*").items()}
        assert found[k].keys() <= slopes.keys()
    for name, whole in slopes.items():
        for k, slope in enumerate(whole):
            own, rest = found.get(k, {}).get(name), slope.clone()
            if own is not None:
                cut = tuple(slice(0, n) for n in own.shape)
                torch.testing.assert_close(slope[cut], own, **CLOSE)
                rest[cut] = 0
            assert not rest.any(), f"{name} has a gradient beside client {k}'s own"
    return found


def grads(of: Pack, loss: Tensor, *names: str) -> dict[str, Tensor]:
    """Gradients [K, …] of Σ loss with respect to the pack's tensors that match; call :func:`leaves` before the forward."""
    chosen = of.params(*names)
    found = torch.autograd.grad(loss.sum(), list(chosen.values()), allow_unused=True)
    return {n: g for n, g in zip(chosen, found, strict=True) if g is not None}


def leaves(of: Pack, *names: str) -> Pack:
    """Make the tensors that match differentiable."""
    for name, value in of.params(*names).items():
        of.tensors[name] = value.contiguous().detach().requires_grad_(True)
    return of
