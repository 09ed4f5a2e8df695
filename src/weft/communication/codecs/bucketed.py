"""QSGD: stochastic levels between zero and the norm of a bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import FixedWidth, Layout
from weft.communication.codecs.scales import Block


@register
@dataclass(frozen=True)
class QSGD(Quantiser):
    """Unbiased: a sign and one of s levels per entry, and one float32 norm per bucket of the tensor's entries in their order.

    With N the norm of a bucket v, |v_i| becomes one of the two levels around y_i = s |v_i| / N, the upper one with probability
    y_i - ⌊y_i⌋; the receiver reads N · sign · level / s. Both norms are at least the largest magnitude, so an entry's variance
    is at most N² / (4 s²), and at most N |v_i| / s. Zero stays zero. The paper's bound of the 2-norm is min(n / s², √n / s).

    Bytes: ⌈n (1 + ⌈log2(s + 1)⌉) / 8⌉ + 4 ⌈n / bucket⌉.

    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, arXiv 1610.02132, section 3.1; buckets and max-norm of its section 4.
    FedPAQ (Reisizadeh et al. 2020, arXiv 1909.13014) sends differences in it.

    Attributes:
        levels: s, of a magnitude above zero: 7 take 4 bits with the sign. bucket: entries that share a norm.
        norm: the largest magnitude (max), or the 2-norm (l2).
    """

    name: ClassVar[str] = "qsgd"
    source: ClassVar[str] = "Alistarh et al. 2017, arXiv 1610.02132"
    fair: ClassVar[bool] = True
    sides: ClassVar[tuple[str, ...]] = ("norm",)
    rounds_at_random: ClassVar[bool] = True

    levels: Annotated[int, Ge(1), Le(32767)] = 7
    bucket: Block = 512
    norm: Literal["max", "l2"] = "max"

    @property
    def layout(self) -> Layout:
        return FixedWidth()

    def variance(self, n: int) -> float:
        m = min(n, self.bucket)
        return min(m / (4 * self.levels**2), math.sqrt(m) / self.levels)

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n] in buckets over their norms [buckets, size], from -1 to 1, and the norms [buckets], float32."""
        v = scales.blocks(x, self.bucket)
        norm = scales.not_below(v.abs().amax(1) if self.norm == "max" else torch.linalg.vector_norm(v, dim=1))
        usable = scales.usable(norm)
        return torch.where(usable[:, None], v / norm.where(usable, 1.0)[:, None], 0.0), norm

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        share, norm = self.scaled(x)
        levels = scales.rounded(share.abs() * self.levels, generator).clamp(max=self.levels)
        signed = torch.where(share < 0, -levels, levels).flatten()[: len(x)]
        return signed.to(torch.int64) + self.levels, {"norm": norm}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return 2 * self.levels + 1

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        scales.check(sides["norm"], (scales.count(n, self.bucket),))

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        levels = codes.to(torch.float64).sub_(self.levels)
        return scales.multiply_(levels, sides["norm"], self.bucket).div_(self.levels).to(torch.float32)
