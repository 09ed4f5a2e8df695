"""What a message says of its tensors: names, shapes, and which wire tensors belong to which, before any of them is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MARK = "::"


@dataclass(frozen=True)
class Form:
    """What a codec writes.

    Attributes:
        own_shapes: wire tensors have the shapes of their tensors, and ``meta`` does not tell them.
        sides: suffixes of what is beside each tensor. places: of what is beside those that entries are left out of.
        kept: how many of n entries are sent; None: all of them. seeded: ``meta`` has a seed.
    """

    own_shapes: bool
    sides: tuple[str, ...]
    places: tuple[str, ...] = ()
    kept: Callable[[int], int] | None = None
    seeded: bool = False


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        n: entries of its shape. kept: how many of them are sent. raw: what stands for these. sides: what is beside, by suffix.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    raw: Tensor
    sides: dict[str, Tensor]

    @property
    def n(self) -> int:
        return math.prod(self.shape)


def entries(wire: Mapping[str, Tensor], meta: Mapping[str, Any], form: Form) -> list[Entry]:
    """The tensors of a message, sorted by name.

    Raises:
        ValueError: ``meta`` is not of this form, or a tensor has a wire tensor too many or too few.
    """
    suffixes = {*form.sides, *form.places}
    names = sorted(name for name in wire if MARK not in name or name.rpartition(MARK)[2] not in suffixes)
    shapes, whole = _meta(wire, names, meta, form)
    left, found = set(wire), []
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        n = math.prod(shape)
        kept = n if form.kept is None or i in whole else form.kept(n)
        wanted = {suffix: f"{name}{MARK}{suffix}" for suffix in (*form.sides, *(form.places if kept < n else ()))}
        if lacking := sorted(suffix for suffix, full in wanted.items() if full not in wire):
            raise ValueError(f"tensor {name!r} lacks its {', '.join(lacking)}")
        if not form.own_shapes and wire[name].dim() != 1:
            raise ValueError(f"tensor {name!r} is not laid down in one row")
        left -= {name, *wanted.values()}
        found.append(Entry(name, shape, kept, wire[name], {suffix: wire[full] for suffix, full in wanted.items()}))
    if left:
        raise ValueError(f"{sorted(left)[0]!r} belongs to no tensor's levels")
    return found


def _meta(
    wire: Mapping[str, Tensor], names: Sequence[str], meta: Mapping[str, Any], form: Form
) -> tuple[list[tuple[int, ...]], set[int]]:
    """The shape of each tensor, and the places of those that are whole."""
    wanted = {"shapes": not form.own_shapes, "whole": form.kept is not None, "seed": form.seeded}
    if set(meta) != {key for key, there in wanted.items() if there}:
        raise ValueError("it carries settings that this codec does not have, or not those that it has")
    if form.seeded and not _is_whole(meta["seed"]):
        raise ValueError("its seed is no number")
    shapes, whole = meta.get("shapes"), meta.get("whole", [])
    if form.own_shapes:
        return [tuple(wire[name].shape) for name in names], set()
    if not isinstance(shapes, list) or len(shapes) != len(names) or not all(map(_is_shape, shapes)):
        raise ValueError("it has not one shape for the levels of each tensor")
    if not isinstance(whole, list) or not all(map(_is_whole, whole)) or whole != sorted({i for i in whole if i < len(names)}):
        raise ValueError("what it says to be whole is not among its tensors, or there twice")
    return [tuple(shape) for shape in shapes], set(whole)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_shape(value: object) -> bool:
    """An empty dimension counts as one: those beside it have to be within reason too."""
    if not isinstance(value, list) or len(value) > 16 or not all(map(_is_whole, value)):
        return False
    return math.prod(max(size, 1) for size in value) < 2**63
