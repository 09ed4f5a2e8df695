"""One bit an entry: its sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.communication.codecs import scales
from weft.communication.codecs.chain import Quantiser
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import FixedWidth, Layout


@register
@dataclass(frozen=True)
class Sign(Quantiser):
    """Deterministic: the sign of each entry and the mean magnitude of the tensor, float32: ⌈n / 8⌉ + 4 bytes.

    ‖C(x) - x‖² = ‖x‖² - ‖x‖₁² / n, hence δ = ‖x‖₁² / (n ‖x‖²) ≥ 1/n. A bit has no room for zero: a tensor that did not move
    arrives unmoved, an entry that did not move in one that did arrives as the mean magnitude.

    Source: signSGD (Bernstein et al. 2018, arXiv 1802.04434); the mean magnitude as in EF-signSGD (Karimireddy et al. 2019,
    arXiv 1901.09847), here without error feedback.
    """

    name: ClassVar[str] = "sign"
    source: ClassVar[str] = "Bernstein et al. 2018, arXiv 1802.04434; Karimireddy et al. 2019, arXiv 1901.09847"
    sides: ClassVar[tuple[str, ...]] = ("scale",)

    @property
    def layout(self) -> Layout:
        return FixedWidth()

    def share_of_norm(self, n: int) -> float:
        return 1 / max(n, 1)

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        mean = x.to(torch.float64).abs().mean() if len(x) else torch.zeros(())
        return (x < 0).to(torch.int64), {"scale": mean.to(torch.float32)}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return 2

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        scales.check(sides["scale"], ())

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        return sides["scale"] * (1 - 2 * codes)
