"""Whole numbers below a bound, as a value of its own kind: token ids, indices, masks of bits. No codec touches them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LARGEST = 1 << 62
"""That a bound may be."""


@dataclass(frozen=True)
class Bounded:
    """What a receiver accepts of :class:`Integers`.

    Attributes:
        shape: a dimension given as None may have any size. below: the bound, which is to be the sender's.
    """

    shape: tuple[int | None, ...]
    below: int


Shape = tuple[int | None, ...] | Bounded
"""Of a value that is to arrive: a side of None may be of any size."""


def sides(shape: Shape) -> tuple[int | None, ...]:
    """Those of tensors and of integers alike."""
    return shape.shape if isinstance(shape, Bounded) else shape


@dataclass(frozen=True, eq=False)
class Integers:
    """Integers from 0 to ``below`` - 1, of any shape.

    They are written down in as few bits each as the bound asks for, in the order of their places: 16 for a vocabulary of 50,265
    tokens, one for a mask (``below=2``), none where the bound leaves no choice.

    Attributes:
        values: int64.

    Raises:
        ValueError: a value is out of bounds, or the bound is.
    """

    values: Tensor
    below: int

    def __post_init__(self) -> None:
        if not 1 <= self.below <= LARGEST:
            raise ValueError(f"a bound is from 1 to {LARGEST}, not {self.below}")
        if self.values.dtype != torch.int64:
            raise ValueError(f"integers are int64, not {self.values.dtype}")
        if self.values.numel() and not 0 <= int(self.values.min()) <= int(self.values.max()) < self.below:
            raise ValueError(f"an integer is not from 0 to {self.below - 1}")

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def packed(self) -> Tensor:
        """Their bits, each integer's lowest first, eight to a byte of uint8; the last byte ends in zeros."""
        flat = self.values.detach().to("cpu").reshape(-1, 1).numpy()
        bits = (flat >> np.arange(width(self.below))) & 1
        return torch.from_numpy(np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little"))


def width(below: int) -> int:
    """Bits of an integer below ``below``."""
    return (below - 1).bit_length()


def packed_size(shape: Sequence[int], below: int) -> int:
    """Bytes of :meth:`Integers.packed`."""
    return -(-math.prod(shape) * width(below) // 8)


def unpacked(packed: Tensor, shape: tuple[int, ...], below: int) -> Integers:
    """Undo :meth:`Integers.packed`.

    Raises:
        ValueError: these bytes are no such integers.
    """
    if not 1 <= below <= LARGEST or any(side < 0 for side in shape):
        raise ValueError("neither sides nor bounds are negative")
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_size(shape, below):
        raise ValueError(f"integers of shape {shape} below {below} take {packed_size(shape, below)} bytes")
    each = width(below)
    bits = np.unpackbits(packed.cpu().numpy(), bitorder="little")
    count = math.prod(shape)
    if bits[count * each :].any():
        raise ValueError("the last byte does not end in zeros")
    values = bits[: count * each].reshape(count, each).astype(np.int64) @ (1 << np.arange(each, dtype=np.int64))
    return Integers(torch.from_numpy(values).reshape(shape), below)
