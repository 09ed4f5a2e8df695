"""Clients that take from those whose values are nearest to their own: Pilot's adaptive text aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from weft.tensors.lowrank import LowRank

Share = Literal["default", "raw"]
"""How much of its own a client keeps, see :func:`mixing`."""

NEAREST = 1e-12
"""A smaller distance is taken for this, so that all who are at none count alike."""


def mixing(distances: Tensor, sizes: Sequence[float], neighbours: int, share: Share = "default") -> Tensor:
    """What each of K clients takes of each: rows of [K, K] are non-negative and add up to 1 (Pilot, arXiv 2501.13985, eq. 11-12).

    A client's neighbours are the ``neighbours`` nearest others, the first ones of those that are equally near. With d_kj the
    distance to the j-th, w_j = 1/d_kj over their sum, and n of ``sizes``, it takes

        default: ρ of its own and (1-ρ) w_j of each, ρ = n_k / (n_k + Σ_j w_j n_j)
        raw:     shares of its own and of each that are as n_k is to 1/d_kj

    Args:
        distances: [K, K], symmetric. sizes: above 0. neighbours: 0 = everybody keeps its own.
    """
    k = len(sizes)
    n = torch.tensor(sizes, dtype=torch.float64)
    found = torch.zeros(k, k, dtype=torch.float64)
    others = distances.double().clone().fill_diagonal_(torch.inf)
    near = others.argsort(dim=1, stable=True)[:, : min(neighbours, k - 1)]
    for i, chosen in enumerate(near):
        close = 1 / others[i, chosen].clamp(min=NEAREST)
        if share == "raw":
            total = n[i] + close.sum()
            own, theirs = n[i] / total, close / total
        else:
            w = close / close.sum() if len(chosen) else close
            own = n[i] / (n[i] + (w * n[chosen]).sum())
            theirs = (1 - own) * w
        found[i, i] = own
        found[i, chosen] = theirs
    return found


def apart(values: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """[K, K] float64, Euclidean distances between K sets of tensors of the same names and shapes.

    They are taken of differences, entry by entry: equal sets are at none.
    """
    square = torch.zeros(len(values), len(values), dtype=torch.float64)
    for name in sorted(values[0]):  # messages are read in any order, and a sum is rounded in its own
        rows = torch.stack([own[name].flatten() for own in values]).double()
        square += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return square.sqrt()


def products_apart(values: Sequence[Sequence[LowRank]]) -> Tensor:
    """[K, K] float64, Frobenius distances between K lists of matrices, of which none is written out.

    B A - B' A' is taken as B (A - A') + (B - B') A', in which no large terms cancel: equal factors are at none.
    """
    square = torch.zeros(len(values), len(values), dtype=torch.float64)
    for i, mine in enumerate(values):
        for j, theirs in enumerate(values[:i]):
            for one, other in zip(mine, theirs, strict=True):
                b, b2 = one.B * one.scale, other.B * other.scale
                gap = LowRank(torch.cat([b, b - b2], 1), torch.cat([one.A - other.A, other.A])).norm()
                square[i, j] += gap**2
            square[j, i] = square[i, j]
    return square.sqrt()
