"""Tensors as integers that can be added up modulo 2^(8·width), and their mean, weighted by what clients weigh.

A client sends its values times its weight, and its weight as one more integer; the server divides one sum by the other. So the
mean is that of the clients who are in the sum, by their own weights, whoever has dropped out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weft.communication.strict import Refused
from weft.errors import UserError
from weft.privacy.sums.whole_numbers import WholeNumbers


@dataclass(frozen=True)
class FixedPoint:
    """Levels from -(2^(bits-1) - 1) to their opposite, of which the outermost are ±clip. All of it is the same for all, and
    public.

    Attributes:
        clip: C > 0. Values beyond it are cut to it; of a vector whose L2 norm is at most C none is.
        bits: of a level, 2 or more.
        clients: m, most of them in a sum. m·2^bits is at most 2^(8·width), so that not even all of them at ±C run over.
        heaviest: W, which a weight is cut to.
        headroom, width: as in :class:`~weft.privacy.sums.whole_numbers.WholeNumbers`.

    Raises:
        UserError: a sum could run over, or a value is out of range.
    """

    clip: float
    bits: int
    clients: int
    heaviest: int = 1
    headroom: int = 0
    width: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.clip < np.inf or self.heaviest < 1:
            raise UserError(f"a clip of {self.clip:g} with weights of up to {self.heaviest} leaves nothing: give more than 0.")
        whole = 8 * self.width
        if not 2 <= self.bits <= whole or (self.clients << self.bits) + 2 * self.headroom > 1 << whole:
            raise UserError(
                f"values of {self.bits} bits from {self.clients} clients, with noise up to ±{self.headroom}, can't be added up "
                f"in {whole} bits: let clients times 2^bits, from 2 bits on, be smaller."
            )
        WholeNumbers(self.heaviest, self.clients, self.headroom, self.width)  # which refuses weights that could run over

    @property
    def step(self) -> float:
        """Between two levels."""
        return self.clip / self._levels.largest

    def encoded(
        self, values: np.ndarray, weight: int = 1, uniform: np.ndarray | None = None, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """uint32 [n + 1]: the levels of values · weight / W, and the weight.

        Args:
            values: floats [n]. weight: of the client, from 0; W at most counts.
            uniform: float64 [n] in [0, 1), by which values are rounded up or down so that they are right on average; None for the
                nearest level. Draw them anew for each client and round.
            noise: integers [n + 1], the client's part of what is to hide the sum. Rounding at random makes a vector of levels
                longer by up to √n, which its accounting must count.

        Raises:
            ValueError: a value is not finite, or a weight negative.
        """
        if not np.isfinite(values).all() or weight < 0:
            raise ValueError("values are finite, and weights not negative")
        weight = min(weight, self.heaviest)
        largest = self._levels.largest
        exact = np.clip(values.astype(np.float64) / self.clip, -1, 1) * (largest * (weight / self.heaviest))
        if uniform is None:
            levels = np.rint(exact)
        else:
            low = np.floor(exact)
            levels = low + (uniform < exact - low)
        of_values, of_weight = (None, None) if noise is None else (noise[:-1], noise[-1:])
        return np.concatenate([self._levels.encoded(levels, of_values), self._weights.encoded(np.array([weight]), of_weight)])

    def summed(self, total: np.ndarray) -> tuple[np.ndarray, int]:
        """float64 [n], the sum of values · weight over clients; and the sum of their weights. For a fixed denominator of one's
        own."""
        return self._levels.summed(total[:-1]) * (self.step * self.heaviest), int(self._weights.summed(total[-1:])[0])

    def mean(self, total: np.ndarray) -> np.ndarray:
        """float64 [n]: the weighted mean, within m · step · W / (sum of weights) of the true one, half of that for nearest
        levels.

        Raises:
            Refused: the weights add up to nothing.
        """
        values, weight = self.summed(total)
        if weight <= 0:
            raise Refused(f"The weights of the clients in the sum add up to {weight}, so that there is no mean.")
        return values / weight

    @property
    def _levels(self) -> WholeNumbers:
        return WholeNumbers(2 ** (self.bits - 1) - 1, self.clients, self.headroom, self.width)

    @property
    def _weights(self) -> WholeNumbers:
        return WholeNumbers(self.heaviest, self.clients, self.headroom, self.width)
