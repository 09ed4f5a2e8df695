"""Noise that is correlated over the rounds of a pass, in one of which each client takes part.

The sums x_1 … x_n of a pass matter added up: A x, with A the ones on and below the diagonal. A factorization A = B C gives out
A x + B z = B (C x + z), which is Gaussian noise z on C x, also where x_t depends on what was given out before (S. Denisov et al.,
"Improved Differential Privacy for SGD via Optimal Private Linear Operators on Adaptive Streams", NeurIPS 2022, arXiv 2202.08312).
A client has a part of one x_t, so that it moves C x by at most the largest norm of a column of C times its own bound.

A factorization gives the noise of one round after another; what it has to keep of earlier rounds lies in a plain dict under
:data:`NOISE`, so that it is saved with everything else, and is new for each pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weft.privacy import accounting

NOISE = "noise"
"""The first word of what is kept of a pass."""


class Factorization(Protocol):
    """Of the matrix that adds up the rounds of a pass."""

    @property
    def sensitivity(self) -> float:
        """The largest norm of a column of C."""

    def noise(self, kept: dict[str, Any], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The noise of the next round's sum.

        Args:
            kept: of the pass; it is written to, and its tensors are never changed in place.
            drawn: by name, independent normal numbers, all of one standard deviation.
        """


def begin_pass(kept: dict[str, Any]) -> None:
    """Drop what was kept of the last pass."""
    for name in [n for n in kept if n.startswith(f"{NOISE}/")]:
        del kept[name]


class Tree:
    """The noise of N_t - N_(t-1), with N_t the sum of the nodes that make up 1…t of a binary tree.

    P. Kairouz et al., ICML 2021, arXiv 2103.00039. C has a row for each node, 1 where a round is below it. Nodes of a tensor
    that has another shape since are left where they are.

    Args:
        rounds: n, of the pass.
    """

    def __init__(self, rounds: int):
        self.rounds = rounds

    @property
    def sensitivity(self) -> float:
        """See :class:`Factorization`: each round is below one node of each level."""
        return math.sqrt(accounting.levels(self.rounds))

    def noise(self, kept: dict[str, Any], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`Factorization`: at most one node of each level is kept."""
        found: dict[str, Tensor] = {}
        t = int(kept.get(f"{NOISE}/t", 0)) + 1
        kept[f"{NOISE}/t"] = t
        gone: list[int] = []
        level = 0
        while t % 2 == 0:  # nodes that are parts of the one which ends here
            gone, t, level = [*gone, level], t // 2, level + 1
        for name, node in drawn.items():
            before = [kept.pop(key) for i in gone if (key := f"{NOISE}/{i}/{name}") in kept]
            kept[f"{NOISE}/{level}/{name}"] = node
            found[name] = node - sum((n for n in before if n.shape == node.shape), torch.zeros_like(node))
        return found


class Banded:
    """The noise y_t with C y = z, C the b diagonals of the square root of A from the main one down.

    N. P. Kalinin and C. Lampert, "Banded Square Root Matrix Factorization for Differentially Private Model Training", NeurIPS
    2024, arXiv 2405.13763; with all diagonals H. Fichtenberger, M. Henzinger, J. Upadhyay, "Constant Matters: Fine-grained Error
    Bound on Differentially Private Continual Observation", ICML 2023, arXiv 2202.11205. C_(t,s) = c_(t-s) with
    c_k = binom(2k, k) / 4^k, so that c_0 = 1 and y_t = z_t - Σ_(0<j<b) c_j y_(t-j).

    A tensor that is not sent in every round has rounds of its own, those in which it is; one of a new shape begins anew.

    Args:
        rounds: n, of the pass. bands: b; a matrix of n rows has n at most.
    """

    def __init__(self, rounds: int, bands: int):
        self.bands = min(bands, rounds)

    @property
    def coefficients(self) -> np.ndarray:
        """c_0 … c_(b-1), float64 [b]."""
        k = np.arange(1, self.bands)
        return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])

    @property
    def sensitivity(self) -> float:
        """See :class:`Factorization`: the first column has all coefficients, and later ones no more."""
        return float(np.linalg.norm(self.coefficients))

    def noise(self, kept: dict[str, Any], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`Factorization`: the last b - 1 noises of each tensor are kept, [b - 1, …], the newest first."""
        later = torch.from_numpy(self.coefficients[1:])
        found: dict[str, Tensor] = {}
        for name, z in drawn.items():
            last = kept.get(f"{NOISE}/{name}")
            if last is None or last.shape[1:] != z.shape:
                last = z.new_zeros((0, *z.shape))
            found[name] = z - torch.tensordot(later[: len(last)].to(z), last, 1)
            if self.bands > 1:
                kept[f"{NOISE}/{name}"] = torch.cat([found[name][None], last])[: self.bands - 1]
        return found
