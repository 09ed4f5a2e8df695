"""Whole numbers of clients in a sum modulo 2^(8·width), of which none that may come can run over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weft.errors import UserError


@dataclass(frozen=True)
class WholeNumbers:
    """Counts, bits or levels of each client, as they are; negative ones in two's complement.

    Attributes:
        largest: of any client's numbers, in absolute value. The same for all, and known to all.
        clients: most of them in a sum.
        headroom: for the sum of their noise, in absolute value. A sum that needs more wraps around, which hides what it hid but
            is wrong: let it be several standard deviations. width: bytes of each number.

    Raises:
        UserError: a sum could run over.
    """

    largest: int
    clients: int
    headroom: int = 0
    width: int = 4

    def __post_init__(self) -> None:
        if self.largest < 0 or self.clients < 1 or self.headroom < 0:
            raise ValueError("bounds, clients and headroom are not negative")
        if 2 * (self.clients * self.largest + self.headroom) >= 1 << (8 * self.width):
            raise UserError(
                f"{self.clients} numbers of up to ±{self.largest}, with noise of up to ±{self.headroom}, can't be added up in "
                f"{8 * self.width} bits: let fewer clients take part, or let the numbers be smaller."
            )

    def encoded(self, numbers: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """uint32, the numbers of one client modulo 2³².

        Args:
            numbers: integers of any shape. noise: integers of the same shape, the client's part of what is to hide the sum.

        Raises:
            ValueError: a number is beyond the bound, or noise has another shape.
        """
        exact = numbers.astype(np.int64)
        if exact.size and max(-int(exact.min()), int(exact.max())) > self.largest:
            raise ValueError(f"a number is not within ±{self.largest}")
        if noise is not None:
            if noise.shape != exact.shape:
                raise ValueError(f"noise of shape {noise.shape} is to hide numbers of shape {exact.shape}")
            exact = exact + noise
        return exact.astype(np.uint32)

    def summed(self, total: np.ndarray) -> np.ndarray:
        """int64: what a sum modulo 2^(8·width) stands for."""
        full = 1 << (8 * self.width)
        exact = total.astype(np.int64)
        return np.where(exact >= full // 2, exact - full, exact)
