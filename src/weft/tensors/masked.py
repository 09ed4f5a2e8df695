"""Some entries of a tensor, as a value of its own kind: of the others it says nothing.

Their places are written down as a bit for each entry of the tensor, or as a list of the chosen ones, whichever is smaller
(:class:`weft.tensors.integers.Integers` both), and as nothing where all are chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weft.tensors.integers import Integers, packed_size, unpacked

Places = Literal["all", "bits", "list"]
"""How the places of entries are written down."""


@dataclass(frozen=True, eq=False)
class Masked:
    """The entries of a tensor at which a mask is True.

    Attributes:
        entries: [m] floats, in the order of their places, the last axis fastest. mask: bool, of the tensor's shape, m of it True.

    Raises:
        ValueError: they do not fit together.
    """

    entries: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"a mask is of bool, not {self.mask.dtype}")
        count = int(self.mask.sum())
        if tuple(self.entries.shape) != (count,):
            raise ValueError(f"there are {count} places for entries of shape {tuple(self.entries.shape)}")

    @classmethod
    def of(cls, value: Tensor, mask: Tensor) -> Masked:
        """The entries of a whole tensor that a mask [bool] of its shape chooses."""
        return cls(value.masked_select(mask), mask)  # twice as fast as an index, of most entries

    @property
    def shape(self) -> torch.Size:
        """The whole tensor's."""
        return self.mask.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.entries.dtype

    def dense(self) -> Tensor:
        """The whole tensor, with zeros where it is not said."""
        return self.over(self.entries.new_zeros(self.shape))

    def over(self, whole: Tensor) -> Tensor:
        """A tensor of the same shape with these entries in their places."""
        return whole.masked_scatter(self.mask, self.entries.to(whole))

    def places(self) -> tuple[Places, Tensor]:
        """How its places are written down, and as which bytes (uint8)."""
        count, size = len(self.entries), self.mask.numel()
        if count == size:
            return "all", torch.zeros(0, dtype=torch.uint8)
        if packed_size((count,), size) < packed_size((size,), 2):
            return "list", Integers(self.mask.detach().cpu().reshape(-1).nonzero().squeeze(1), size).packed()
        return "bits", Integers(self.mask.detach().cpu().to(torch.int64), 2).packed()


def mask_of(kind: object, packed: Tensor, shape: tuple[int, ...], count: int) -> Tensor:
    """Undo :meth:`Masked.places`: the mask.

    Args:
        kind, packed, shape: from anyone. count: of its entries.

    Raises:
        ValueError: these are no places of so many entries.
    """
    size = math.prod(shape)
    if any(side < 0 for side in shape):
        raise ValueError("sides are not negative")
    if kind == "all" and packed.numel() == 0:
        mask = torch.ones(shape, dtype=torch.bool)
    elif kind == "bits":
        mask = unpacked(packed, shape, 2).values.bool()
    elif kind == "list" and size:
        chosen = unpacked(packed, (count,), size).values
        if bool((chosen.diff() <= 0).any()):
            raise ValueError("places are listed in their order, each once")
        mask = torch.zeros(size, dtype=torch.bool).index_fill(0, chosen, True).view(shape)
    else:
        raise ValueError(f"there are no places {kind!r} of {packed.numel()} bytes")
    if int(mask.sum()) != count:
        raise ValueError(f"there are {int(mask.sum())} places for {count} entries")
    return mask


def dense(value: object) -> Tensor:
    """A tensor, or the whole one of which a value has some entries, with zeros where it is not said."""
    assert isinstance(value, Tensor | Masked)
    return value.dense() if isinstance(value, Masked) else value


def alive(value: object) -> Tensor:
    """Which entries of a tensor a value has: its mask, or everything."""
    assert isinstance(value, Tensor | Masked)
    return value.mask if isinstance(value, Masked) else torch.ones(value.shape, dtype=torch.bool)
