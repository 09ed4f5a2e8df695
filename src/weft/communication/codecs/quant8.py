"""Levels of one byte, one scale for each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import Layout, SignedBytes

LEVELS = SignedBytes.ZERO


@register
@dataclass(frozen=True)
class Quant8(Quantiser):
    """Unbiased 8-bit quantiser of differences: one float32 scale and one signed byte per entry, n + 4 bytes.

    With s the largest magnitude in a tensor x, the entry x_i becomes a level in -127..127, drawn from the
    two integers around y_i = 127 x_i / s, the upper one with probability y_i - floor(y_i); the receiver reads
    the level times s / 127. Hence the mean over the stream is x (to float rounding), an entry's variance is
    at most s^2 / (4 * 127^2), and zero stays exactly zero: what did not move arrives unmoved. Scales are per
    tensor, as A and B of LoRA differ by orders of magnitude. A tensor with an infinite or NaN entry gets a
    scale that is not finite, which every receiver refuses.

    Stochastic uniform quantisation follows QSGD (Alistarh et al. 2017, arXiv 1610.02132), here with the
    max-norm; quantising what a client changed instead of what it holds follows FedPAQ (Reisizadeh et al.
    2020, arXiv 1909.13014).
    """

    name: ClassVar[str] = "quant8"
    source: ClassVar[str] = "Alistarh et al. 2017, arXiv 1610.02132; Reisizadeh et al. 2020, arXiv 1909.13014"
    fair: ClassVar[bool] = True
    sides: ClassVar[tuple[str, ...]] = ("scale",)
    rounds_at_random: ClassVar[bool] = True

    @property
    def layout(self) -> Layout:
        return SignedBytes()

    def variance(self, n: int) -> float:
        return min(n / (4 * LEVELS**2), math.sqrt(n) / LEVELS)

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        x = x.to(torch.float64)
        scale = scales.not_below(x.abs().max()) if len(x) else torch.zeros(())
        # Dividing first keeps |y| <= 127 under rounding
        y = x / scale * LEVELS if scales.usable(scale) else torch.zeros_like(x)
        return scales.rounded(y, generator).to(torch.int64) + SignedBytes.ZERO, {"scale": scale}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return 2 * LEVELS + 1

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        scales.check(sides["scale"], ())

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        # In float64 until the end: scale * level can pass float32's range, scale / 127 can vanish in it
        levels = (codes - SignedBytes.ZERO).to(torch.float64)
        return (levels * sides["scale"].to(torch.float64) / LEVELS).to(torch.float32)
