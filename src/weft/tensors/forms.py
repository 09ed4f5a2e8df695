"""Values of several kinds as plain named tensors, and back: for messages, checkpoints, sites, workers and exports.

A value is a tensor, or is made of others. Those of ``x`` are called ``x`` + a mark + a role, as in ``x:A``; the mark belongs to
the file or message that they lie in. What is left of the value is JSON, by name: the scale of a :class:`LowRank`; the shape and
the bound of :class:`Integers`; the shape of a :class:`Masked` and how its places are written down. Another kind of value is added
here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from weft.tensors.integers import Integers, unpacked
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked, mask_of

Value = Tensor | LowRank | Integers | Masked
"""What has a name: a tensor, a product of two factors, whole numbers below a bound, or some entries of a tensor."""

ROLES = ("A", "B")
"""Of the tensors that a LowRank is made of."""

BITS = "bits"
"""The role of the tensor that Integers are made of."""

ENTRIES, PLACES = "entries", "places"
"""Of the tensors that a Masked is made of."""


def pieces(value: Value) -> dict[str, Tensor]:
    """The tensors that a value is made of, by role; ``""`` for a tensor itself."""
    if isinstance(value, LowRank):
        return {"A": value.A, "B": value.B}
    if isinstance(value, Masked):
        return {ENTRIES: value.entries, PLACES: value.places()[1]}
    return {BITS: value.packed()} if isinstance(value, Integers) else {"": value}


def flatten(values: Mapping[str, Value], mark: str = ":") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors, and what is left of the values that are no tensors themselves."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        tensors |= {f"{name}{mark}{role}" if role else name: tensor for role, tensor in pieces(value).items()}
        if isinstance(value, LowRank):
            rest[name] = value.scale  # apart: B · scale would differ in the last bit
        elif isinstance(value, Integers):
            rest[name] = {"below": value.below, "shape": list(value.shape)}
        elif isinstance(value, Masked):
            rest[name] = {"places": value.places()[0], "shape": list(value.shape)}
    return tensors, rest


def restore(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], mark: str = ":") -> dict[str, Value]:
    """Undo :func:`flatten`.

    Raises:
        KeyError: a tensor of a value is missing. ValueError: integers are none of their bound, or places none of entries.
    """
    values: dict[str, Value] = dict(tensors)
    for name, about in rest.items():
        if isinstance(about, Mapping) and "places" in about:
            entries, places = (values.pop(f"{name}{mark}{role}") for role in (ENTRIES, PLACES))
            assert isinstance(entries, Tensor) and isinstance(places, Tensor)
            values[name] = Masked(entries, mask_of(about["places"], places, tuple(about["shape"]), len(entries)))
            continue
        if isinstance(about, Mapping):
            bits = values.pop(f"{name}{mark}{BITS}")
            assert isinstance(bits, Tensor)
            values[name] = unpacked(bits, tuple(about["shape"]), about["below"])
            continue
        a, b = (values.pop(f"{name}{mark}{role}") for role in ROLES)
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        values[name] = LowRank(B=b, A=a, scale=float(about))
    return values


def factored(names: Iterable[str], mark: str = ":") -> list[str]:
    """Names of the LowRanks among the names of flat tensors, for files that keep no scales."""
    end = mark + ROLES[0]
    return [name.removesuffix(end) for name in names if name.endswith(end)]


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors that values are made of; anything that is no value is passed over."""
    for value in values:
        if isinstance(value, Value):
            yield from pieces(value).values()


def finite(values: Iterable[Any]) -> bool:
    """Whether all numbers in values are finite; anything that is no value is passed over."""
    return all(bool(torch.isfinite(t).all()) for t in tensors_in(values) if t.is_floating_point())
