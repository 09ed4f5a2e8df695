"""Whole numbers in as many bits each as the largest needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Bytes = npt.NDArray[np.uint8]

_AT_ONCE = 1 << 18  # numbers; a multiple of 8, so that their bits end with a byte


def width(count: int) -> int:
    """Bits that tell apart so many numbers, at least one."""
    return max((count - 1).bit_length(), 1)


def size(n: int, bits: int) -> int:
    """Bytes of n numbers."""
    return -(-n * bits // 8)


def pack(numbers: Ints, bits: int) -> Bytes:
    """Numbers from 0 below 2^bits, one behind the other, the highest bit first; the last byte is filled up with zeros."""
    if bits == 8:
        return numbers.astype(np.uint8)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    pieces = [np.empty(0, np.uint8)]
    for at in range(0, len(numbers), _AT_ONCE):
        some = numbers[at : at + _AT_ONCE].astype(np.uint32)
        pieces.append(np.packbits(((some[:, None] >> shifts) & 1).astype(np.uint8)))
    return np.concatenate(pieces)


def unpack(raw: Bytes, n: int, bits: int) -> npt.NDArray[np.int64]:
    """Undo :func:`pack` on exactly ``size(n, bits)`` bytes.

    Raises:
        ValueError: the last byte is filled up with something else.
    """
    if bits == 8:
        return raw.astype(np.int64)
    if n * bits % 8 and int(raw[-1]) & ((1 << (-n * bits % 8)) - 1):
        raise ValueError("there is something behind the last number")
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found = np.empty(n, np.int64)
    for at in range(0, n, _AT_ONCE):
        count = min(_AT_ONCE, n - at)
        start = at * bits // 8
        some = np.unpackbits(raw[start : start + size(count, bits)], count=count * bits)
        found[at : at + count] = some.reshape(count, bits) @ weights
    return found
