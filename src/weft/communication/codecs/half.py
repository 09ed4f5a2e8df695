"""Sixteen bits an entry, floating point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import AsTheyAre, Layout

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_PRECISION = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # largest relative error of rounding to the nearest
_LARGEST = 15  # a tensor's largest magnitude is brought below 2^15, well inside of both formats


@register
@dataclass(frozen=True)
class Half(Quantiser):
    """The nearest float16 or bfloat16 of each entry, and one float32 scale, a power of two: 2 n + 4 bytes.

    The scale brings the largest magnitude to 2^14 .. 2^15: differences of 1e-6 and below would be subnormal in float16.

    Source: the scale after the loss scaling of Micikevicius et al. 2018 (arXiv 1710.03740), here for each tensor.

    Attributes:
        format: fp16 has 11 significant bits, bf16 has 8 and no smaller range than float32.
    """

    name: ClassVar[str] = "half"
    source: ClassVar[str] = "scale after Micikevicius et al. 2018, arXiv 1710.03740"
    sides: ClassVar[tuple[str, ...]] = ("scale",)

    format: Literal["fp16", "bf16"] = "fp16"

    @property
    def layout(self) -> Layout:
        return AsTheyAre(_DTYPES[self.format])

    def share_of_norm(self, n: int) -> float:
        # Relative to the entry, or, where float16 is subnormal, 2^-25 where the largest entry is at least 2^14
        return max(1 - _PRECISION[self.format] ** 2 - n * 2.0**-78, 0.0)

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        largest = float(x.abs().max()) if len(x) else 0.0
        exponent = math.frexp(largest)[1] if 0 < largest < math.inf else _LARGEST
        scale = 2.0 ** min(max(exponent - _LARGEST, -126), 127)
        return (x.to(torch.float64) / scale).to(_DTYPES[self.format]), {"scale": torch.tensor(scale, dtype=torch.float32)}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return 0

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        scales.check(sides["scale"], ())

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        found = codes.to(torch.float64) * sides["scale"].to(torch.float64)
        largest = torch.finfo(torch.float32).max  # rounding may have passed it
        return torch.where(found.isfinite(), found.clamp(-largest, largest), found).to(torch.float32)
