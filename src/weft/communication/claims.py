"""Names and shapes that a message claims, before anything of those shapes is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weft.communication.exact import DENSEST, MARK, elements
from weft.communication.frame import Expected
from weft.communication.strict import Refused, is_number, plain, quoted
from weft.tensors import forms
from weft.tensors.integers import Bounded, sides


def check_tensors(shapes: Mapping[str, tuple[int, ...]], scales: dict[str, Any], expected: Expected) -> None:
    """Names and shapes, before anything of those shapes is made."""
    found = dict(shapes)
    free = 0
    for name, scale in scales.items():
        a, b = (found.pop(f"{name}{MARK}{role}", ()) for role in forms.ROLES)
        if not is_number(scale, int, float) or not abs(scale) < math.inf:
            raise Refused(f"Tensor {quoted(name)} has a scale that is not a finite number.")
        if len(b) != 2 or len(a) != 2 or b[1] != a[0]:
            raise Refused(f"Tensor {quoted(name)} has no two factors with a product.")
        if name in found:
            raise Refused(f"Tensor {quoted(name)} is there twice, factored and not.")
        found[name] = (b[0], a[1])
        free += elements(b) + elements(a)
    for name, shape in found.items():
        if name not in expected.tensors:
            raise Refused(f"Tensor {quoted(name)} is not expected.")
        wanted = expected.tensors[name]
        if isinstance(wanted, Bounded):
            raise Refused(f"Tensor {quoted(name)} is not of integers, unexpectedly.")
        if wanted is not None and (
            len(shape) != len(wanted) or any(w not in (None, d) for d, w in zip(shape, wanted, strict=True))
        ):
            raise Refused(f"Tensor {quoted(name)} has shape {plain(shape)}; expected is {tuple(wanted)}.")
        if expected.lowrank is not None and (name in scales) != (name in expected.lowrank):
            raise Refused(f"Tensor {quoted(name)} is {'' if name in scales else 'not '}factored, unexpectedly.")
        if name not in scales and (wanted is None or None in wanted):
            free += elements(shape)
    if free > expected.max_bytes:
        raise Refused(f"Tensors of free shape have more than {expected.max_bytes} elements.")


def check_claims(shapes: Mapping[str, tuple[int, ...]], bases: Mapping[str, Tensor], expected: Expected, length: int) -> None:
    """A codec may say much in few bytes, but a shape that is neither expected nor held here has to be written out."""
    free = [
        math.prod(shape)
        for name, shape in shapes.items()
        if name not in bases and ((wanted := expected.tensors.get(name)) is None or None in sides(wanted))
    ]
    if sum(free) > DENSEST * length:
        raise Refused(f"Tensors of free shape claim {sum(free)} elements in {length} bytes.")
