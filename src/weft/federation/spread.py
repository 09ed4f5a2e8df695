"""How far clients' changes of tensors are apart from each other, of tensors that act as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 1 << 16
"""Entries of a tensor that are looked at: of a larger one, every so many-th, so that no second model is held in memory."""


@dataclass
class Spread:
    """Sums over clients at one tensor, in double precision.

    Attributes:
        shape: of the tensor at all clients. step: between entries that are looked at.
        weight: Σ w. total: Σ w u of these entries. squares: Σ w ‖u‖² of these entries.
    """

    shape: torch.Size
    weight: float
    total: Tensor
    squares: float
    step: int

    @classmethod
    def none(cls, shape: torch.Size) -> Spread:
        step = max(1, -(-shape.numel() // MOST))
        while step > 1 and math.gcd(step, shape[-1]) > 1:  # else it would come upon the same columns in every row
            step += 1
        return cls(shape, 0.0, torch.zeros(-(-shape.numel() // step), dtype=torch.float64), 0.0, step)

    def add(self, old: Tensor, new: Tensor, weight: float) -> None:
        """A client's change u = new - old, both of this shape."""
        some = slice(None, None, self.step)
        change = new.reshape(-1)[some].cpu().double() - old.reshape(-1)[some].cpu().double()
        self.total += weight * change
        self.squares += weight * float(change.dot(change))
        self.weight += weight

    def parts(self) -> tuple[float, float]:
        """Σ p ‖u - ū‖² and ‖ū‖², where ū = Σ p u and p = w / Σ w, of all entries as those that are looked at."""
        mean = float(self.total.dot(self.total)) / self.weight**2
        return self.step * (self.squares / self.weight - mean), self.step * mean
