"""Levels in as many bits as their frequencies are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft.communication.codecs import bits, rans
from weft.communication.codecs.bits import Bytes
from weft.communication.codecs.chain import Coder
from weft.communication.codecs.known import register
from weft.communication.codecs.laid import Codes, FixedWidth, Packed

FIXED, CONSTANT, CODED = range(3)

MOST = 4096
"""Numbers that a table of frequencies may have."""

_WEIGHT = 6  # bits of a frequency in the table
_WEIGHTS = np.array([0, *(m << e for e in range(16) for m in (4, 5, 6, 7))], np.int64)[: 1 << _WEIGHT]
_LONGEST = 8192  # numbers of a lane: so many steps are taken at most
_USUAL, _WORTH = 2048, 256  # numbers of a lane, where it has so many bytes


@register
@dataclass(frozen=True)
class Entropy(Coder):
    """The levels of the quantiser before it, coded by their frequencies in each tensor (rANS); nothing is lost.

    Bytes: about n H / 8 + 6/8 for each level from the least to the greatest that occurs + 4 for each lane of 2048 to 8192 entries
    + 6, with H the entropy of the levels in bits. Never more than a byte more than without it, and 2 to 4 where all levels are
    the same.

    A wire tensor begins with a byte: 0, levels of fixed width follow; 1, all entries have the level that follows; 2, coded:
    lanes, least level, how many there are from it to the greatest, a weight of 6 bits for each of these, a state of 4 bytes for
    each lane, and words of 2 bytes. The first three and the level of 1 are numbers in groups of 7 bits, the lowest first, with
    the eighth bit set where another group follows. A weight w is 0 for what does not occur, else
    (4 + (w-1) mod 4) · 2^⌊(w-1)/4⌋; of the total of 2^14 each level that occurs has 1, and of the rest a part in proportion.

    Source: asymmetric numeral systems, Duda 2013, arXiv 1311.2540. QSGD codes its levels too, by Elias' code.
    """

    name: ClassVar[str] = "entropy"
    source: ClassVar[str] = "Duda 2013, arXiv 1311.2540"

    def pack(self, all: Sequence[Codes]) -> list[Tensor]:
        plain = [np.concatenate([[np.uint8(FIXED)], raw.numpy()]) for raw in FixedWidth().pack(all)]
        found = [raw if len(codes.numbers) else raw[:0] for raw, codes in zip(plain, all, strict=True)]
        heads: dict[int, Bytes] = {}
        streams: dict[int, rans.Stream] = {}
        for i, codes in enumerate(all):
            numbers = codes.numbers.numpy()
            if not len(numbers):
                continue
            low, high = int(numbers.min()), int(numbers.max())
            if low == high:
                found[i] = _shorter(found[i], np.concatenate([[np.uint8(CONSTANT)], _varint(low)]), codes)
            elif high - low < MOST:
                counts = np.bincount(numbers - low)
                weights = _weights(counts)
                frequencies = _frequencies(weights)
                size = float((counts * (rans.BITS - np.log2(np.maximum(frequencies, 1)))).sum()) / 8
                lanes = _lanes(len(numbers), size)
                head = [np.array([CODED]), _varint(lanes), _varint(low), _varint(len(weights)), bits.pack(weights, _WEIGHT)]
                heads[i] = np.concatenate(head).astype(np.uint8)
                if len(heads[i]) + 4 * lanes + size < len(found[i]):
                    streams[i] = rans.Stream((numbers - low).astype(np.int64), frequencies, lanes)
        for i, (states, words) in zip(streams, rans.encode(list(streams.values())), strict=True):
            coded = np.concatenate([heads[i], _raw(states, "<u4"), _raw(words, "<u2")])
            found[i] = _shorter(found[i], coded, all[i])
        return [torch.from_numpy(raw) for raw in found]

    def check(self, packed: Packed) -> None:
        if packed.raw.dtype != torch.uint8 or packed.raw.dim() != 1:
            raise ValueError(f"tensor {packed.name!r} is not bytes of coded levels")
        _Read(packed)

    def unpack(self, all: Sequence[Packed]) -> list[Tensor]:
        read = [_Read(packed) for packed in all]
        numbers = iter(rans.decode([r.coded for r in read if r.coded is not None]))
        found: list[Tensor] = []
        for r in read:
            if r.fixed is not None:
                found += FixedWidth().unpack([r.fixed])
            elif r.coded is not None:
                found.append(torch.from_numpy(next(numbers) + r.low))
            else:
                found.append(torch.full((r.n,), r.low, dtype=torch.int64))
        return found


class _Read:
    """What the bytes of one tensor say, before anything of n entries is made of them.

    Attributes:
        fixed: levels of fixed width. coded: what there is to decode, of numbers above ``low``. Neither: n times ``low``.

    Raises:
        ValueError: they are not what is written.
    """

    def __init__(self, packed: Packed):
        self.n, self.low = packed.n, 0
        self.fixed: Packed | None = None
        self.coded: rans.Coded | None = None
        raw: Bytes = packed.raw.numpy()
        try:
            self._read(packed, raw)
        except (IndexError, ValueError) as error:
            raise ValueError(f"tensor {packed.name!r} is not coded levels of its entries: {error}") from None

    def _read(self, packed: Packed, raw: Bytes) -> None:
        if not packed.n:
            if len(raw):
                raise ValueError("there are none")
            return
        if raw[0] == FIXED:
            self.fixed = Packed(packed.name, packed.raw[1:], packed.n, packed.alphabet)
            FixedWidth().check(self.fixed)
        elif raw[0] == CONSTANT:
            self.low, at = _number(raw, 1)
            if at != len(raw) or self.low >= packed.alphabet:
                raise ValueError("no level is the same everywhere")
        elif raw[0] == CODED:
            lanes, at = _number(raw, 1)
            self.low, at = _number(raw, at)
            count, at = _number(raw, at)
            if not 1 <= count <= MOST or self.low + count > packed.alphabet:
                raise ValueError("its table has levels that are none")
            if not _fewest(packed.n) <= lanes <= packed.n:
                raise ValueError("it has too few or too many lanes")
            states, words = at + bits.size(count, _WEIGHT), at + bits.size(count, _WEIGHT) + 4 * lanes
            if words > len(raw) or (len(raw) - words) % 2:
                raise ValueError("it ends too early")
            frequencies = _frequencies(bits.unpack(raw[at:states], count, _WEIGHT))
            first = raw[states:words].copy().view("<u4").astype(np.uint32)
            if (first < rans.LOW).any():
                raise ValueError("a lane has a state that is none")
            self.coded = rans.Coded(first, raw[words:].copy().view("<u2").astype(np.uint16), frequencies, packed.n)
        else:
            raise ValueError("it begins with no way of coding")


def _shorter(fixed: Bytes, other: Bytes, codes: Codes) -> Bytes:
    """The other one, unless it is longer, or less than a bit an entry where all have to be there."""
    enough = not codes.whole or 8 * len(other) >= len(codes.numbers)
    return other if enough and len(other) < len(fixed) else fixed


def _lanes(n: int, size: float) -> int:
    """As many as are quick and cost little of so many bytes."""
    return max(_fewest(n), min(-(-n // _USUAL), int(size / _WORTH)), 1)


def _fewest(n: int) -> int:
    return -(-n // _LONGEST)


def _weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts as places in the table of weights, the largest at its end; what occurs at all has at least the least."""
    scaled = counts * (_WEIGHTS[-1] / counts.max())
    borders = (_WEIGHTS[1:-1] + _WEIGHTS[2:]) / 2
    return np.where(counts > 0, 1 + np.searchsorted(borders, scaled), 0)


def _frequencies(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Frequencies that add up to the total, in whole numbers alone, so that both ends have the same: 1 for each number that
    occurs, and the rest in proportion.

    Raises:
        ValueError: nothing occurs.
    """
    found = _WEIGHTS[weights]
    total, occur = int(found.sum()), int((found > 0).sum())
    if not total:
        raise ValueError("nothing occurs")
    shares = np.where(found > 0, 1 + found * (rans.TOTAL - occur) // total, 0)
    shares[int(shares.argmax())] += rans.TOTAL - int(shares.sum())
    return shares


def _varint(value: int) -> Bytes:
    groups = [(value >> shift) & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return np.array([g | 128 for g in groups[:-1]] + groups[-1:], np.uint8)


def _number(raw: Bytes, at: int) -> tuple[int, int]:
    """A number, and where the next one begins.

    Raises:
        IndexError: there is none. ValueError: it is written in more bytes than it takes.
    """
    value = 0
    for shift in range(0, 35, 7):
        group = int(raw[at])
        value, at = value | (group & 127) << shift, at + 1
        if group < 128:
            if shift and not group:
                break
            return value, at
    raise ValueError("a number is too long")


def _raw(numbers: npt.NDArray[np.integer], dtype: str) -> Bytes:
    return np.frombuffer(numbers.astype(dtype).tobytes(), np.uint8)
