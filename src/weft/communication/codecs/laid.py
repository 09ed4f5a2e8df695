"""How the numbers that stand for a tensor's entries lie in its wire tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.communication.codecs import bits


@dataclass(frozen=True)
class Codes:
    """What stands for the entries of one tensor.

    Attributes:
        numbers: [n], floating point, or whole numbers from 0 below ``alphabet``.
        alphabet: how many different ones there could be; 0 for floating point.
        whole: at least a bit of each entry is to be sent.
    """

    numbers: Tensor
    alphabet: int
    whole: bool = False


@dataclass(frozen=True)
class Packed:
    """The same as it lies in a wire tensor, from a stranger: it is n numbers below ``alphabet`` if the layout says so."""

    name: str
    raw: Tensor
    n: int
    alphabet: int


class Layout(ABC):
    """One way to lay numbers down.

    Attributes:
        elementwise: each entry has an element of the wire tensor, which may therefore have the tensor's own shape.
    """

    elementwise: ClassVar[bool] = False

    @abstractmethod
    def pack(self, all: Sequence[Codes]) -> list[Tensor]:
        """A wire tensor [any] for each."""

    @abstractmethod
    def check(self, packed: Packed) -> None:
        """
        Raises:
            ValueError: dtype or size are not those of so many numbers, told without making them.
        """

    @abstractmethod
    def unpack(self, all: Sequence[Packed]) -> list[Tensor]:
        """The numbers [n] of each, after :meth:`check` found nothing wrong.

        Raises:
            ValueError: a number is none that is below the alphabet.
        """


class AsTheyAre(Layout):
    """Floating point, in the dtype they have: n · itemsize bytes.

    Args:
        dtype: the one that is accepted; None: any.
    """

    elementwise = True

    def __init__(self, dtype: torch.dtype | None = None):
        self.dtype = dtype

    def pack(self, all: Sequence[Codes]) -> list[Tensor]:
        return [codes.numbers for codes in all]

    def check(self, packed: Packed) -> None:
        dtype = packed.raw.dtype
        if dtype != self.dtype if self.dtype else not dtype.is_floating_point:
            raise ValueError(f"tensor {packed.name!r} is {dtype}, not {self.dtype or 'floating point'}")
        if packed.raw.numel() != packed.n:
            raise ValueError(f"tensor {packed.name!r} has not as many numbers as entries")

    def unpack(self, all: Sequence[Packed]) -> list[Tensor]:
        return [packed.raw.reshape(-1) for packed in all]


class SignedBytes(Layout):
    """Levels -127..127 of an alphabet of 255, of which 127 is zero: n bytes."""

    elementwise = True

    ZERO: ClassVar[int] = 127

    def pack(self, all: Sequence[Codes]) -> list[Tensor]:
        return [(codes.numbers - self.ZERO).to(torch.int8) for codes in all]

    def check(self, packed: Packed) -> None:
        if packed.raw.dtype != torch.int8 or packed.raw.numel() != packed.n:
            raise ValueError(f"tensor {packed.name!r} is not 8-bit levels, one of each entry")

    def unpack(self, all: Sequence[Packed]) -> list[Tensor]:
        for packed in all:
            if (packed.raw < -self.ZERO).any():
                raise ValueError(f"tensor {packed.name!r} has a level below {-self.ZERO}")
        return [packed.raw.reshape(-1).to(torch.int64) + self.ZERO for packed in all]


class FixedWidth(Layout):
    """As many bits each as tell the alphabet apart: ⌈n · b / 8⌉ bytes, b = max(⌈log2 alphabet⌉, 1)."""

    def pack(self, all: Sequence[Codes]) -> list[Tensor]:
        return [torch.from_numpy(bits.pack(c.numbers.numpy(), bits.width(c.alphabet))) for c in all]

    def check(self, packed: Packed) -> None:
        wanted = bits.size(packed.n, bits.width(packed.alphabet))
        if packed.raw.dtype != torch.uint8 or packed.raw.dim() != 1 or packed.raw.numel() != wanted:
            raise ValueError(f"tensor {packed.name!r} is not the {wanted} bytes that the levels of its entries take")

    def unpack(self, all: Sequence[Packed]) -> list[Tensor]:
        found = []
        for packed in all:
            numbers = bits.unpack(packed.raw.numpy(), packed.n, bits.width(packed.alphabet))
            if packed.n and int(numbers.max()) >= packed.alphabet:
                raise ValueError(f"tensor {packed.name!r} has a level that is none")
            found.append(torch.from_numpy(numbers))
        return found
