"""Float32 scales beside levels: one for each block of entries, or one for all."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

Block = Annotated[int, Ge(1), Le(1 << 20)]
"""How many entries share a scale."""


def not_below(x: Tensor) -> Tensor:
    """The smallest float32 >= x, so that no entry exceeds its scale; inf or NaN where float32 has none."""
    y = x.to(torch.float32)
    return torch.where(y < x, torch.nextafter(y, torch.full_like(y, torch.inf)), y)


def blocks(x: Tensor, size: int) -> Tensor:
    """x [n] as [blocks, size] in float64, zeros at the end; one block of n entries if there are fewer than its size."""
    size = min(size, max(len(x), 1))
    wide = x.to(torch.float64)
    return torch.nn.functional.pad(wide, (0, -len(x) % size)).reshape(-1, size)


def count(n: int, size: int) -> int:
    """How many blocks n entries make."""
    return -(-n // size)


def of_entries(scales: Tensor, size: int, n: int) -> Tensor:
    """The scale [n] of each entry, float64."""
    return scales.to(torch.float64).repeat_interleave(min(size, max(n, 1)))[:n]


def usable(scale: Tensor) -> Tensor:
    """Where a scale can be divided by."""
    return (scale > 0) & (scale < torch.inf)


def check(scales: Tensor, shape: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: these are not finite float32 scales of this shape.
    """
    if scales.dtype != torch.float32 or tuple(scales.shape) != shape:
        raise ValueError("is not levels with as many float32 scales as it needs")
    if not bool(((scales >= 0) & (scales < torch.inf)).all()):
        raise ValueError("has a scale that is negative or not finite")


def rounded(y: Tensor, generator: torch.Generator | None) -> Tensor:
    """y as whole numbers, up with probability y - ⌊y⌋ and down otherwise: y on average."""
    uniform = torch.rand(y.shape, generator=generator, dtype=torch.float64)
    lower = y.floor()
    return lower + (uniform < y - lower)
