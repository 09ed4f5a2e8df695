"""How much each entry of a tensor matters: the scores by which entries are kept, and gates that learn it, as pure functions.

:mod:`weft.aggregation.pruning` makes masks of scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def magnitude(values: Tensor) -> Tensor:
    """|w|, the usual score (Han et al., NeurIPS 2015)."""
    return values.abs()


def change(values: Tensor, start: Tensor) -> Tensor:
    """|w - w₀|, by how far training has moved an entry: what is left of a difference is its largest entries (magnitude pruning of
    diff vectors, Guo et al., ACL 2021, arXiv 2012.07463; FedSelect).
    """
    return (values - start).abs()


def movement(values: Tensor, slopes: Tensor, so_far: Tensor | None = None) -> Tensor:
    """S - w · ∂L/∂w, to be added up over steps: high where training drives an entry away from 0 (Sanh et al., NeurIPS 2020, arXiv
    2005.07683, equation 5).

    Args:
        slopes: of the loss by ``values``. so_far: S of the steps before; None = 0.
    """
    step = -values * slopes
    return step if so_far is None else so_far + step


def fisher(slopes: Tensor) -> Tensor:
    """The mean of (∂L/∂w)² over examples, the diagonal of the empirical Fisher information (FISH masks, Sung et al., NeurIPS
    2021, arXiv 2111.09839, equation 4).

    Args:
        slopes: [n, …], of each example by itself.
    """
    return slopes.square().mean(0)


# gates ----------------------------------------------------------------------------------------------------------------------

STRETCHED = (-1.5, 1.5)
"""l and r of diff pruning's code; Louizos et al. take -0.1 and 1.1."""
TEMPERATURE = 2 / 3


def gates(scores: Tensor, noise: Tensor | None = None, stretched: tuple[float, float] = STRETCHED) -> Tensor:
    """Hard concrete gates in [0, 1], exactly 0 or 1 in part and differentiable (Louizos et al., ICLR 2018, arXiv 1712.01312);
    what diff pruning multiplies a difference with.

        z = min(1, max(0, s̄)),  s̄ = s (r - l) + l,  s = σ((log u - log(1 - u) + log α) / β)

    Args:
        scores: log α. noise: u in (0, 1) of each entry; None = without noise, s = σ(log α), as when a model is used.
    """
    low, high = stretched
    s = torch.sigmoid(scores if noise is None else (noise.log() - (-noise).log1p() + scores) / TEMPERATURE)
    return (s * (high - low) + low).clamp(0, 1)


def open_share(scores: Tensor, stretched: tuple[float, float] = STRETCHED) -> Tensor:
    """The chance that each gate is not 0, σ(log α - β log(-l/r)): their sum is the penalty by which gates learn to close."""
    low, high = stretched
    return torch.sigmoid(scores - TEMPERATURE * math.log(-low / high))
