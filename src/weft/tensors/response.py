"""Gradients as answers that are random: one of 256 levels each, and which one it is told truly only now and then.

``unbiased`` is k-ary randomised response (P. Kairouz, S. Oh, P. Viswanath, "Extremal mechanisms for local differential privacy",
JMLR 2016, arXiv 1407.1338) over levels between which a gradient is rounded at random: right on average within ±clip. An answer is
ε-locally private by itself; a message holds one for each entry and a run holds many messages, so that nothing follows for either.

``paper-code`` is what the published code of PFCR does, which does not do what its paper says: the levels are as wide as half the
range asks for, so that gradients of either sign fold onto the same ones, and what is read of a level hardly depends on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = 256


def kept(epsilon: float) -> float:
    """κ, by how much an answer leans to the true level: it is kept with e^ε / (e^ε + 255), else it is any other."""
    return math.expm1(epsilon) / (math.exp(epsilon) + LEVELS - 1)


def answers(g: Tensor, epsilon: float, clip: float, generator: torch.Generator) -> Tensor:
    """Whole numbers 0 … 255 in the place of entries, which are cut to ±clip."""
    place = (g.double().cpu().clamp(-clip, clip) + clip) * ((LEVELS - 1) / (2 * clip))
    level = (place + torch.rand(g.shape, generator=generator, dtype=torch.float64)).floor().clamp(max=LEVELS - 1)
    other = torch.randint(LEVELS, g.shape, generator=generator).double()  # the true one is among them, hence κ
    true = torch.rand(g.shape, generator=generator, dtype=torch.float64) < kept(epsilon)
    return torch.where(true, level, other).to(g)


def read(answers: Tensor, epsilon: float, clip: float) -> Tensor:
    """What is true on average of entries that were answered with these numbers."""
    middle = (LEVELS - 1) / 2
    return (answers - middle) / kept(epsilon) * (clip / middle)


def published(g: Tensor, epsilon: float, clip: float, generator: torch.Generator) -> Tensor:
    """Numbers 0 … 255 as the published code makes them."""
    level = ((g.double().cpu().clamp(-clip, clip) + clip) / (clip / LEVELS)).round()
    noise = torch.rand(g.shape, generator=generator, dtype=torch.float64) * LEVELS
    noisy = torch.rand(g.shape, generator=generator, dtype=torch.float64) < (math.exp(epsilon) + 1) / (math.exp(epsilon) + 2)
    return torch.where(noisy, level + noise.floor(), level).remainder(LEVELS).to(g)


def read_as_published(answers: Tensor, clip: float) -> Tensor:
    """What the published code reads in them: (q - c) · c / 256."""
    return (answers - clip) * (clip / LEVELS)
