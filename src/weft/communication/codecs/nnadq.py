"""FedOBD's quantiser: as many levels as the range of a tensor is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import FixedWidth, Layout

_MOST = 16  # bits of an entry
_ELEMENT = 32  # bits of an entry that is not quantised


@register
@dataclass(frozen=True)
class NNADQ(Quantiser):
    """Deterministic: levels at equal distances between the least and the greatest entry, both float32.

    With N their distance, b = max(1, ⌈log2 ⌈max(1, √(N · 32 · ln 4 / weight))⌉⌉) bits, at most 16, give L = 2^b - 1 steps; the
    root minimises weight · log2(L) / 32 + N / L². An entry becomes the nearest level, at most N / (2 L) away. The bits follow
    from N, so they are not sent.

    Bytes: ⌈n b / 8⌉ + 8.

    Source: FedOBD (Chen, Chen, Wu, Yu 2023, arXiv 2208.05174) and its code. Where entries of both signs are there, the levels are
    moved by at most half a step so that one of them is zero: what did not move arrives unmoved. The code's bz2 is not there; use
    an entropy coder behind it.

    Attributes:
        weight: of the bits against the error. The paper's code has 1e-3 for images, 1e-4 for texts.
    """

    name: ClassVar[str] = "nnadq"
    source: ClassVar[str] = "FedOBD, Chen et al. 2023, arXiv 2208.05174"
    sides: ClassVar[tuple[str, ...]] = ("range",)

    weight: Annotated[float, Gt(0), Le(1)] = 1e-3

    @property
    def layout(self) -> Layout:
        return FixedWidth()

    def bits(self, span: float) -> int:
        """Of entries whose least and greatest are this far apart."""
        if not math.isfinite(span):
            return 1
        wanted = math.ceil(max(1.0, math.sqrt(span * _ELEMENT * math.log(4) / self.weight)))
        return min(max((wanted - 1).bit_length(), 1), _MOST)

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        wide = x.to(torch.float64)
        low, high = (-scales.not_below(-wide.min()), scales.not_below(wide.max())) if len(x) else (torch.zeros(()),) * 2
        ends = torch.stack([low, high])
        if not bool(ends.isfinite().all()):
            return torch.zeros(len(x), dtype=torch.int64), {"range": ends}
        steps, step, zero = self._grid(ends)
        codes = (wide - float(low)) / step if zero is None else wide / step + zero
        return codes.nan_to_num().round().clamp(0, steps).to(torch.int64), {"range": ends}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        low, high = map(float, sides["range"])
        return 1 << self.bits(high - low)

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        ends = sides["range"]
        if ends.dtype != torch.float32 or tuple(ends.shape) != (2,) or not bool(ends.isfinite().all()) or ends[0] > ends[1]:
            raise ValueError("has no two float32 ends of its levels that are finite and in their order")

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        _, step, zero = self._grid(sides["range"])
        wide, largest = codes.to(torch.float64), torch.finfo(torch.float32).max
        values = float(sides["range"][0]) + wide * step if zero is None else (wide - zero) * step
        return values.clamp(-largest, largest).to(torch.float32)  # levels that were moved may pass it

    def _grid(self, ends: Tensor) -> tuple[int, float, int | None]:
        """Steps, how far they are apart, and which of them is zero, if one has to be."""
        low, high = map(float, ends)
        steps = (1 << self.bits(high - low)) - 1
        step = (high - low) / steps
        return steps, step, round(-low / step) if low <= 0 <= high and step > 0 else None
