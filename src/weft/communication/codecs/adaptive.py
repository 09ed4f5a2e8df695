"""A budget of bits, spent on the tensors of a message where it takes most of the error away."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from weft.communication.codecs import bits
from weft.communication.codecs.bucketed import QSGD
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import FixedWidth, Layout
from weft.communication.codecs.scales import Block

LEAST, MOST = 2, 12
"""Bits of an entry, its sign among them."""


@register
@dataclass(frozen=True)
class Adaptive(Quantiser):
    """Unbiased: :class:`QSGD` with the max-norm and 2^(b-1) - 1 levels, where b, from 2 to 12, differs from tensor to tensor.

    Every tensor begins with 2 bits. The next bit of all entries goes to the tensor in which it lowers the expected squared error
    most for each bit that is spent, as long as the bits of the message are at most ``bits`` for each of its entries. The
    expected error Σ (N/s)² p (1 - p) of stochastic rounding is exact, p being the part of s |v| / N behind the point. So a tensor
    that moved much, or that quantises badly, gets more than one that hardly moved.

    Bytes: Σ over the tensors of ⌈n b / 8⌉ + 4 ⌈n / bucket⌉ + 1; Σ n b ≤ bits · Σ n, but for rounding up.

    Source: our own rule, the greedy form of reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3) with
    the error of QSGD (arXiv 1610.02132) for the Gaussian's.

    Attributes:
        bits: of an entry, on average over the message. bucket: entries that share a norm.
    """

    name: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "own; after reverse water-filling, with levels of arXiv 1610.02132"
    fair: ClassVar[bool] = True
    sides: ClassVar[tuple[str, ...]] = ("norm", "bits")
    rounds_at_random: ClassVar[bool] = True

    bits: Annotated[float, Ge(LEAST), Le(MOST)] = 4.0
    bucket: Block = 512

    @property
    def layout(self) -> Layout:
        return FixedWidth()

    def variance(self, n: int) -> float:
        return QSGD(_levels(LEAST), self.bucket).variance(n)

    def allot(self, values: Mapping[str, Tensor]) -> Mapping[str, Quantiser]:
        sizes = {name: len(x) for name, x in values.items()}
        chosen = dict.fromkeys(values, LEAST)
        left = math.floor((self.bits - LEAST) * sum(sizes.values()))
        scaled = {name: QSGD(1, self.bucket).scaled(x) for name, x in values.items()}
        errors = {name: _error(*scaled[name], LEAST) for name in values}

        def offer(name: str) -> tuple[float, str, float]:
            """What a further bit of each entry adds to the expected error, for each bit: the least is the best."""
            after = _error(*scaled[name], chosen[name] + 1)
            return (after - errors[name]) / sizes[name], name, after

        offers = [offer(name) for name, n in sizes.items() if n]
        heapq.heapify(offers)
        while offers:
            added, name, after = heapq.heappop(offers)
            if added >= 0 or sizes[name] > left:
                continue
            left -= sizes[name]
            chosen[name], errors[name] = chosen[name] + 1, after
            if chosen[name] < MOST:
                heapq.heappush(offers, offer(name))
        return {name: _Told(_levels(b), self.bucket) for name, b in chosen.items()}

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.allot({"": x})[""].quantise(x, generator)

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return self._of(sides).alphabet(sides)

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        told = sides["bits"]
        if told.dtype != torch.uint8 or told.dim() or not LEAST <= int(told) <= MOST:
            raise ValueError(f"does not say the bits of its levels, from {LEAST} to {MOST}")
        self._of(sides).check(n, sides)

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        return self._of(sides).restore(codes, sides)

    def _of(self, sides: Mapping[str, Tensor]) -> QSGD:
        return QSGD(_levels(int(sides["bits"])), self.bucket)


class _Told(QSGD):
    """Says beside its levels how many bits they take."""

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        numbers, sides = super().quantise(x, generator)
        return numbers, sides | {"bits": torch.tensor(bits.width(2 * self.levels + 1), dtype=torch.uint8)}


def _error(share: Tensor, norm: Tensor, b: int) -> float:
    """The expected squared error of entries of b bits, from their shares [buckets, size] of their norms [buckets]."""
    y = share.abs() * _levels(b)
    part = y - y.floor()
    return float(((part * (1 - part)).sum(1) * (norm.to(torch.float64) / _levels(b)) ** 2).sum())


def _levels(b: int) -> int:
    """Above zero, of b bits with the sign."""
    return (1 << (b - 1)) - 1
