"""Blocks of entries over their largest magnitude, each entry the nearest value of a code book."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import FixedWidth, Layout, SignedBytes
from weft.communication.codecs.scales import Block


@functools.cache
def linear() -> Tensor:
    """-127/127 to 127/127."""
    return torch.arange(-SignedBytes.ZERO, SignedBytes.ZERO + 1, dtype=torch.float64) / SignedBytes.ZERO


@functools.cache
def normal_float() -> Tensor:
    """NF4: quantiles of the normal distribution, as many entries of which fall to each, from -1 to 1 and with a zero.

    Eight probabilities at equal distances from δ to ½ and nine from ½ to 1 - δ, δ = ½ (1/32 + 1/30), share the one that gives
    zero; their quantiles are divided by the largest. QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3 and appendix E;
    the formula is spelt out by Yoshida 2023 (arXiv 2306.06965), section 2.
    """
    delta = (1 / 32 + 1 / 30) / 2
    lower, upper = np.linspace(delta, 0.5, 8), np.linspace(0.5, 1 - delta, 9)
    quantile = NormalDist().inv_cdf
    found = np.array([*map(quantile, lower[:-1]), 0.0, *map(quantile, upper[1:])])
    return torch.from_numpy(found / found[-1])


@functools.cache
def four_bit_float() -> Tensor:
    """FP4: a sign, two bits e of exponent and one m of mantissa: (1 + m/2) · 2^(e-1), of e = 0 m/2, over the largest.

    The format E2M1 of the OCP microscaling formats (2023). bitsandbytes has 1/192 where this has 1/12.
    """
    magnitudes = [m / 2 if e == 0 else (1 + m / 2) * 2 ** (e - 1) for e in range(4) for m in range(2)]
    return torch.tensor([*(-v for v in magnitudes[:0:-1]), *magnitudes], dtype=torch.float64) / magnitudes[-1]


class Blockwise(Quantiser):
    """Deterministic: a float32 scale per block, the largest magnitude in it, and of each entry the value next to entry / scale
    in a code book from -1 to 1. The largest entry of a block is exact, and so is zero."""

    sides: ClassVar[tuple[str, ...]] = ("scale",)
    block: int

    @property
    def book(self) -> Tensor:
        """Its values [alphabet], ascending, float64."""
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        return FixedWidth()

    def share_of_norm(self, n: int) -> float:
        """Of a block with an entry of 1, which is exact, the other m - 1 do worst half-way between two values a < b of the book:
        (m-1) ((b-a)/2)² / (1 + (m-1) ((a+b)/2)²) of the squared norm is lost, for the worst of all pairs."""
        others = max(min(n, self.block) - 1, 0)
        gaps, middles = self.book.diff() / 2, (self.book[1:] + self.book[:-1]) / 2
        return 1 - float((others * gaps**2 / (1 + others * middles**2)).max())

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        v = scales.blocks(x, self.block)
        scale = scales.not_below(v.abs().amax(1))
        usable = scales.usable(scale)
        share = torch.where(usable[:, None], v / scale.where(usable, 1.0)[:, None], 0.0).flatten()[: len(x)]
        borders = (self.book[1:] + self.book[:-1]) / 2
        return torch.bucketize(share, borders), {"scale": scale}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return len(self.book)

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        scales.check(sides["scale"], (scales.count(n, self.block),))

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        return (scales.of_entries(sides["scale"], self.block, len(codes)) * self.book[codes]).to(torch.float32)


@register
@dataclass(frozen=True)
class Block8(Blockwise):
    """Deterministic 8-bit levels -127..127 at equal distances, one float32 scale per block: n + 4 ⌈n / block⌉ bytes.

    Source: blocks and their largest magnitudes after Dettmers et al. 2022 (arXiv 2110.02861), whose levels lie closer near zero.

    Attributes:
        block: entries that share a scale.
    """

    name: ClassVar[str] = "block8"
    source: ClassVar[str] = "after Dettmers et al. 2022, arXiv 2110.02861"

    block: Block = 256

    @property
    def book(self) -> Tensor:
        return linear()

    @property
    def layout(self) -> Layout:
        return SignedBytes()


@register
@dataclass(frozen=True)
class NF4(Blockwise):
    """Deterministic 4-bit NormalFloat, one float32 scale per block: ⌈n / 2⌉ + 4 ⌈n / block⌉ bytes.

    Source: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), without its second quantisation of the scales.

    Attributes:
        block: entries that share a scale.
    """

    name: ClassVar[str] = "nf4"
    source: ClassVar[str] = "Dettmers et al. 2023, arXiv 2305.14314"

    block: Block = 64

    @property
    def book(self) -> Tensor:
        return normal_float()


@register
@dataclass(frozen=True)
class FP4(Blockwise):
    """Deterministic 4-bit floating point, E2M1, one float32 scale per block: ⌈n / 2⌉ + 4 ⌈n / block⌉ bytes.

    Source: QLoRA (Dettmers et al. 2023, arXiv 2305.14314) compares NF4 with it.

    Attributes:
        block: entries that share a scale.
    """

    name: ClassVar[str] = "fp4"
    source: ClassVar[str] = "E2M1, as compared in Dettmers et al. 2023, arXiv 2305.14314"

    block: Block = 64

    @property
    def book(self) -> Tensor:
        return four_bit_float()
