"""What a client changes as whole numbers for a sum that is hidden, with its part of the noise; and what such a sum stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from weft.communication.strict import Refused
from weft.errors import UserError
from weft.federation.one_mean import clipped
from weft.federation.sum_layout import SumLayout
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import Summed
from weft.privacy.secret import Secret
from weft.privacy.sums.fixed_point import FixedPoint
from weft.privacy.sums.integer_noise import LARGEST, skellam
from weft.privacy.sums.whole_numbers import WholeNumbers

SIGMAS = 10
"""Standard deviations of the noise of a sum that there is room for."""


@dataclass(frozen=True)
class SumCode:
    """Of one run, and the tensors of a round. All of it follows from what everybody knows.

    Attributes:
        privacy: with a mechanism that sums. layout: of the vector. alike: all clients count alike.

    Raises:
        UserError: a sum could run over, or the levels are too few for the noise.
    """

    privacy: Privacy
    layout: SumLayout
    alike: bool

    def __post_init__(self) -> None:
        bits, levels, variance = self._bits, self.privacy.sum_levels, self.privacy.part_of_noise
        if variance > LARGEST:
            raise UserError(
                f"{self._link.name}:bits={bits} makes noise of {math.sqrt(variance):.3g} levels, and a client's part has at most "
                f"{math.sqrt(LARGEST):.3g}: give fewer bits."
            )
        if self.noisy and 2 * self._rounding > levels:
            raise UserError(
                f"{self._link.name}:bits={bits} leaves nothing of {self.layout.numbers:,} values that are rounded within a norm: "
                "give more bits."
            )
        _ = self._values, self._weights

    @property
    def noisy(self) -> bool:
        """Whether noise hides clients in the sum."""
        return self.privacy.central is not None

    @property
    def length(self) -> int:
        """Integers of a vector: values, what the client weighs, and what it weighs for each of its tensors."""
        return self.layout.numbers + 1 + len(self.layout.slots)

    @property
    def step(self) -> float:
        """Between two levels."""
        return self._values.step

    def encoded(self, change: Mapping[str, Tensor], weight: float, secret: Secret) -> np.ndarray:
        """uint32 [length].

        Args:
            change: of a client, by name. weight: its examples. secret: which its noise is made from.

        Raises:
            Refused: a tensor has no place in the layout.
            UserError: the weight is no whole number.
        """
        if not self.alike and weight != int(weight):
            raise UserError(f"an update weighs {weight:g}, and {self._link.name} sums whole numbers: choose another method.")
        counts = 1 if self.alike else min(int(weight), self._heaviest)
        norm = self.privacy.sum_norm - (self._rounding * self.step if self.noisy else 0.0)
        values, sent = self.layout.vector(clipped(change, norm)[0])
        variance = self.privacy.part_of_noise
        noise = np.append(skellam(secret, variance, len(values)), 0) if variance else None
        numbers = self._values.encoded(values, counts, noise=noise)
        return np.concatenate([numbers, self._weights.encoded(sent * counts)])

    def mean(self, total: np.ndarray, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """float64 by name, of all that anybody has sent: the weighted mean of each entry over those who have sent it.

        Args:
            total: uint32 [length], of one client or more.
            expected: by name, what each entry is divided by instead.

        Raises:
            Refused: the weights are none that clients can have.
        """
        cut = self.layout.numbers + 1
        values, weight = self._values.summed(total[:cut])
        slots = self._weights.summed(total[cut:])
        if weight <= 0 or slots.min() < 0 or slots.max() > weight:
            raise Refused("The weights of the clients in the sum are none that they can have, so that there is no mean.")
        sums, weights = self.layout.tensors(values), self.layout.weights(slots)
        by = weights if expected is None else {n: expected[n] for n in weights}
        return {n: sums[n] / by[n].clamp(min=1e-12) for n in weights}

    @property
    def _link(self) -> Summed:
        link = self.privacy.summed
        assert link is not None
        return link

    @property
    def _bits(self) -> int:
        return self.privacy.sum_bits(self.layout.clients)

    @property
    def _heaviest(self) -> int:
        return 1 if self.alike else self._link.heaviest

    @property
    def _rounding(self) -> float:
        """By how many levels rounding may lengthen a vector."""
        return math.sqrt(self.layout.numbers) / 2

    @cached_property
    def _values(self) -> FixedPoint:
        headroom = math.ceil(SIGMAS * math.sqrt(self.layout.clients * self.privacy.part_of_noise))
        return FixedPoint(self.privacy.sum_norm, self._bits, self.layout.clients, self._heaviest, headroom)

    @cached_property
    def _weights(self) -> WholeNumbers:
        return WholeNumbers(self._heaviest, self.layout.clients)
