"""What of a message no codec touches: integers, as bits past the codec, see :mod:`weft.communication.wire`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weft.communication.frame import Expected
from weft.communication.strict import Refused, is_number, plain, quoted
from weft.tensors import forms
from weft.tensors.forms import Value
from weft.tensors.integers import Bounded

MARK = "::"

DENSEST = 8
"""Entries a byte, at most, of tensors whose shapes a receiver can't know: a bit each."""


def bits_of(scales: Mapping[str, Any]) -> dict[str, str]:
    """Names of a message's integers, each with that of the bits that it is made of."""
    integers = [name for name, about in scales.items() if isinstance(about, dict) and forms.PLACES not in about]
    return {name: f"{name}{MARK}{forms.BITS}" for name in integers}


def read_integers(wire: dict[str, Tensor], scales: dict[str, Any], expected: Expected, length: int) -> dict[str, Value]:
    """The message's integers, taken out of what the codec reads; nothing of their shape is made before that is checked."""
    found: dict[str, Value] = {}
    for name, bits in bits_of(scales).items():
        about, wanted = scales.pop(name), expected.tensors.get(name)
        if not isinstance(wanted, Bounded) or bits not in wire:
            raise Refused(f"Tensor {quoted(name)} is of integers, unexpectedly.")
        shape, below = about.get("shape"), about.get("below")
        if about.keys() != {"shape", "below"} or below != wanted.below or not is_number(below, int):
            raise Refused(f"Tensor {quoted(name)} has a bound of {plain(below)}; expected is {wanted.below}.")
        if not isinstance(shape, list) or not all(is_number(side, int) and side >= 0 for side in shape):
            raise Refused(f"Tensor {quoted(name)} has sides that are no sizes.")
        if len(shape) != len(wanted.shape) or any(w not in (None, d) for d, w in zip(shape, wanted.shape, strict=True)):
            raise Refused(f"Tensor {quoted(name)} has shape {plain(tuple(shape))}; expected is {wanted.shape}.")
        if None in wanted.shape and elements(tuple(shape)) > min(DENSEST * length, expected.max_bytes):
            raise Refused(f"Tensor {quoted(name)} claims {elements(tuple(shape))} integers in {length} bytes.")
        try:
            found |= forms.restore({bits: wire.pop(bits)}, {name: about}, MARK)
        except ValueError as error:
            raise Refused(f"Tensor {quoted(name)}: {plain(error)}.") from None
    return found


def elements(shape: tuple[int, ...]) -> int:
    """Elements, an empty dimension counting as one: a shape of (10^18, 0) must not pass as nothing."""
    return math.prod(max(size, 1) for size in shape)
