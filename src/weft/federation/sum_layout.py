"""A round's tensors as one vector of whole numbers, the same for all clients of the round, so that their sum says what a mean is.

Names are sorted. Of each tensor there are all the values that the server has, from a client that has the leading slice of it or
none with zeros elsewhere; then one number for every shape that clients have of it, which is what a client weighs if it sends the
tensor in that shape, else 0. So each entry has the sum of the weights of those who have sent it, whoever has dropped out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.communication.strict import Refused, is_number, quoted, write_json
from weft.federation.one_mean import OneMean, spread

MOST = 1 << 24
"""Clients that a sum may be of."""

Sides = tuple[int, ...]


@dataclass(frozen=True)
class SumLayout:
    """Where everything stands.

    Attributes:
        shapes: by name, sorted: that in which a tensor is summed, and those that clients have of it, sorted.
        clients: most of them in the sum.
    """

    shapes: Mapping[str, tuple[Sides, tuple[Sides, ...]]]
    clients: int

    @classmethod
    def of(cls, one: OneMean) -> SumLayout:
        """Of all that clients of a server may send."""
        names = sorted({name for own, _ in one.each() for name in own})
        return cls({name: (one.whole(name), tuple(sorted(one.kinds(name)))) for name in names}, max(len(one.server.clients), 1))

    @cached_property
    def numbers(self) -> int:
        """Of values."""
        return sum(math.prod(whole) for whole, _ in self.shapes.values())

    @cached_property
    def slots(self) -> tuple[tuple[str, Sides], ...]:
        """What the weights behind the values are of."""
        return tuple((name, shape) for name, (_, kinds) in self.shapes.items() for shape in kinds)

    @property
    def parts(self) -> dict[str, int]:
        """How many values there are of each part."""
        found: dict[str, int] = {}
        for name, (whole, _) in self.shapes.items():
            part = name.split("/", 1)[0]
            found[part] = found.get(part, 0) + math.prod(whole)
        return found

    def vector(self, tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """float64 [numbers] and bool [slots]: values in their places, and which slots they are of.

        Raises:
            Refused: a tensor has no place.
        """
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if odd := sorted(set(shapes.items()) - set(self.slots)):
            raise Refused(f"The sum has no place for {quoted(odd[0][0])} of {odd[0][1]}.")
        whole = torch.zeros(self.numbers, dtype=torch.float64)
        for name, (at, sides) in self._places.items():
            if name in tensors:
                place = whole[at : at + math.prod(sides)].view(sides)
                place[tuple(slice(0, n) for n in shapes[name])] = tensors[name]
        return whole.numpy(), np.array([shapes.get(name) == shape for name, shape in self.slots], dtype=bool)

    def tensors(self, values: np.ndarray) -> dict[str, Tensor]:
        """By name, in the shapes in which they are summed."""
        return {
            name: torch.from_numpy(values[at : at + math.prod(sides)]).view(sides) for name, (at, sides) in self._places.items()
        }

    def weights(self, slots: np.ndarray) -> dict[str, Tensor]:
        """float64, of each tensor that anybody has sent: what those weigh together who have sent an entry."""
        found: dict[str, dict[Sides, int]] = {}
        for (name, shape), weight in zip(self.slots, slots.tolist(), strict=True):
            if weight:
                found.setdefault(name, {})[shape] = weight
        return {name: spread(self.shapes[name][0], counts) for name, counts in found.items()}

    @cached_property
    def _places(self) -> dict[str, tuple[int, Sides]]:
        """Where the values of a tensor begin, and its shape."""
        found, at = {}, 0
        for name, (whole, _) in self.shapes.items():
            found[name] = at, whole
            at += math.prod(whole)
        return found

    # across the wire --------------------------------------------------------------------------------------------------------

    def written(self) -> dict[str, Any]:
        """Plain JSON; by name the shapes as text, ``8x4 8x2 8x4``: the first is the one in which it is summed."""
        shapes = {name: " ".join(map(_text, (whole, *kinds))) for name, (whole, kinds) in self.shapes.items()}
        return {"clients": self.clients, "shapes": shapes}

    @classmethod
    def read(cls, written: object) -> SumLayout:
        """Raises: Refused: this is no layout that :meth:`written` writes."""
        try:
            shapes, clients = written["shapes"], written["clients"]  # type: ignore[index]
            made = cls({name: _read(text) for name, text in sorted(shapes.items())}, clients)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Refused("The layout of the sum is none.") from None
        if not (is_number(clients, int) and 0 < clients <= MOST) or made.written() != written:
            raise Refused("The layout of the sum is none.")
        return made

    @cached_property
    def digest(self) -> str:
        """By which two layouts are told apart: 32 hexadecimal digits."""
        return hashlib.sha256(write_json(self.written())).hexdigest()[:32]


def _text(shape: Sides) -> str:
    return "x".join(map(str, shape)) or "."


def _read(text: str) -> tuple[Sides, tuple[Sides, ...]]:
    whole, *kinds = (() if shape == "." else tuple(int(n) for n in shape.split("x")) for shape in text.split(" "))
    if not kinds:
        raise ValueError("nobody has it")
    for shape in kinds:
        if len(shape) != len(whole) or not all(0 <= n <= most for n, most in zip(shape, whole, strict=True)):
            raise ValueError("a client has more of a tensor than is summed")
    return whole, tuple(sorted(set(kinds)))
