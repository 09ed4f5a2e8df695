"""Differences to a reference that learns where updates lead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from weft.communication.codecs.chain import Shift
from weft.communication.codecs.known import register


@register
@dataclass(frozen=True)
class Learning(Shift):
    """A client's differences are taken from what it received, x, and its shift h together, which both ends move with every
    message alike: with Δ what it has changed and C the codec behind this stage,

        m = C(Δ - h) is sent;    x + h + m arrives;    h ← h + α m

    so that what C does to it shrinks with the distance between Δ and h. Where C is unbiased, α = 1 / (1 + ω) and this is DIANA,
    or α = √((1 + 2ω) / (2 (1 + ω)³)) and this is SoteriaFL. Where it is not, α = 1: h is what arrived last time, what was left
    out comes next time, and this is EF21, the error feedback without an error to keep.

    Bytes: those of the codec behind it; h is never sent.

    Source: Mishchenko, Gorbunov, Takáč, Richtárik 2019, arXiv 1901.09269; for biased codecs Richtárik, Sokolov, Fatkhullin 2021,
    arXiv 2106.05203; for gradients under noise Li, Zhao, Li, Chi 2022, arXiv 2206.09888.

    Attributes:
        step: whose α it is, behind a codec that is unbiased: ``diana`` or ``soteriafl``.
    """

    name: ClassVar[str] = "shift"
    source: ClassVar[str] = "Mishchenko et al. 2019, arXiv 1901.09269"

    step: Literal["diana", "soteriafl"] = "diana"

    @property
    def asks_fair(self) -> bool:
        return self.step != "diana"

    def moved(self, omega: float) -> float:
        if self.step == "soteriafl":
            return math.sqrt((1 + 2 * omega) / (2 * (1 + omega) ** 3))
        return 1 / (1 + omega)
