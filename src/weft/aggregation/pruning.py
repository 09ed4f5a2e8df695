"""Which entries of tensors are kept: scores, structures, budgets by layer and schedules of pruning, as pure functions.

A mask is a bool tensor of the shape of what it masks, True where an entry is kept (*alive*).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def smallest(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """The mask of the ``count`` smallest scores among some entries; of equal ones those that come first.

    Args:
        scores: of any shape. among: bool of that shape. count: at least 0, at most the number of these entries.
    """
    return _first(scores.masked_fill(~among, math.inf), count, descending=False)


def largest(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """The mask of the ``count`` largest scores among some entries; of equal ones those that come first."""
    return _first(scores.masked_fill(~among, -math.inf), count, descending=True)


def _first(scores: Tensor, count: int, descending: bool) -> Tensor:
    chosen = scores.flatten().argsort(descending=descending, stable=True)[:count]
    return torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device).index_fill(0, chosen, True).view(scores.shape)


def pruned(scores: Tensor, alive: Tensor, share: float) -> Tensor:
    """What is left of a mask when the given share of its entries with the smallest scores goes; at least one entry stays."""
    living = int(alive.sum())
    return alive & ~smallest(scores, alive, min(int(share * living), max(living - 1, 0)))


# budgets by layer -----------------------------------------------------------------------------------------------------------


def erdos_renyi(shapes: Mapping[str, Sequence[int]], density: float, kernel: bool = True) -> dict[str, float]:
    """Densities by tensor, in proportion to (n_in + n_out) / (n_in n_out), that keep ``density`` of all entries together.

    Mocanu et al., Nature Communications 2018 (ER); with ``kernel`` the sides of convolutions count among the sums and products
    (Evci et al., ICML 2020, ERK). A tensor that would be more than dense is dense, and the others share what is left.

    Args:
        shapes: (out, in, …) of each. density: above 0, at most 1.
    """
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    raw = {n: sum(s if kernel else s[:2]) / math.prod(s if kernel else s[:2]) for n, s in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        rest = density * sum(sizes.values()) - sum(sizes[n] for n in dense)
        scale = rest / sum(raw[n] * sizes[n] for n in shapes if n not in dense)
        if not (over := {n for n in shapes if n not in dense and scale * raw[n] > 1}):
            return {n: 1.0 if n in dense else scale * raw[n] for n in shapes}
        dense |= over
    return dict.fromkeys(shapes, 1.0)


# schedules ------------------------------------------------------------------------------------------------------------------


def gradual(t: int, begin: int, end: int, last: float, first: float = 0.0) -> float:
    """The pruned share at a step: from ``first`` to ``last`` along a cubic that is steep at first (Zhu & Gupta, 2017)."""
    done = min(max((t - begin) / max(end - begin, 1), 0.0), 1.0)
    return last + (first - last) * (1 - done) ** 3


def cosine(t: int, end: int, share: float) -> float:
    """share/2 · (1 + cos(π t / end)), 0 from ``end`` on: how many entries change places (Evci et al., ICML 2020)."""
    return share / 2 * (1 + math.cos(math.pi * t / end)) if t < end else 0.0


# structures -----------------------------------------------------------------------------------------------------------------


def n_of_m(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """The mask with the n largest scores of every m entries along the last axis, as sparse tensor cores take them (2:4).

    Raises:
        ValueError: the last axis is no multiple of m.
    """
    if not scores.dim() or scores.shape[-1] % m:
        raise ValueError(f"{n} of every {m} entries can't be kept of a tensor of shape {tuple(scores.shape)}")
    groups = scores.reshape(-1, m)
    chosen = groups.argsort(dim=-1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(1, chosen, True).view(scores.shape)


def share_of_pattern(mask: Tensor, n: int = 2, m: int = 4) -> float | None:
    """The share of every m entries along the last axis of which at most n are kept: of 1, sparse tensor cores can take it; None
    if the last axis is no multiple of m.
    """
    if not mask.dim() or not mask.numel() or mask.shape[-1] % m:
        return None
    return float((mask.reshape(-1, m).sum(1) <= n).double().mean())


def by_rows(scores: Tensor, alive: Tensor, share: float) -> Tensor:
    """What is left of a mask when whole rows go, those with the smallest norm of their scores; at least one row stays."""
    rows = alive.flatten(1).any(1)
    norms = (scores * alive).flatten(1).norm(dim=1)
    kept = pruned(norms, rows, share)
    return alive & kept.view(-1, *[1] * (alive.dim() - 1))


# what is worth its time -----------------------------------------------------------------------------------------------------


def worth_their_time(
    gains: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    times: Mapping[str, float],
    gain: float,
    time: float,
    most: int | None = None,
) -> dict[str, Tensor]:
    """Masks with the entries beside those kept that raise Γ/T, the gain of all kept entries over the time that they take.

    Entries are taken by their own ratio, the largest first, as long as it is above Γ/T; this is the maximum of Γ/T over all
    choices (PruneFL, Jiang et al., arXiv 1909.12326).

    Args:
        gains: of each entry, at least 0. kept: masks of the same shapes. times: of one entry of each tensor, above 0.
        gain, time: Γ and T of what is kept already. most: entries, at most, of all tensors together; None = no limit.
    """
    names = list(gains)
    free = torch.cat([~kept[n].flatten() for n in names])
    each = torch.cat([gains[n].flatten().double() for n in names])
    cost = torch.cat([torch.full((gains[n].numel(),), times[n], dtype=torch.float64) for n in names])
    order = (each / cost).masked_fill(~free, -1.0).argsort(descending=True, stable=True)[: int(free.sum())]
    more, longer = each[order], cost[order]
    before = gain + more.cumsum(0) - more, time + longer.cumsum(0) - longer
    worth = more / longer > before[0] / before[1]
    count = int(worth.cumprod(0).sum())  # the first that is not worth it ends it: those behind are worth less
    if most is not None:
        count = min(count, max(most - int((~free).sum()), 0))
    chosen = ~free
    chosen[order[:count]] = True
    pieces = chosen.split([gains[n].numel() for n in names])
    return {n: piece.view_as(kept[n]) for n, piece in zip(names, pieces, strict=True)}
