"""Tensors of which a message holds some entries: their places, past the codec, and what their differences are taken from.

The entries of ``x`` travel as ``x::entries``, by the codec, and their places as ``x::places``, see
:meth:`weft.tensors.masked.Masked.places`. These are left out where the receiver holds entries of ``x`` at the same places; then
they are part of the message's checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.communication.exact import DENSEST, MARK, elements
from weft.communication.frame import Expected
from weft.communication.strict import Refused, is_number, plain, quoted
from weft.tensors import forms
from weft.tensors.forms import Value
from weft.tensors.integers import Bounded
from weft.tensors.masked import Masked, mask_of

HELD = "held"
"""How places are written down that the receiver holds."""


def entries_of(name: str) -> str:
    """What the entries of a tensor are called in a message."""
    return f"{name}{MARK}{forms.ENTRIES}"


def places_of(name: str) -> str:
    return f"{name}{MARK}{forms.PLACES}"


@dataclass(frozen=True)
class Announced:
    """What a message says of a tensor that it holds in part.

    Attributes:
        kind: how the places are written down. shape: of the whole tensor. packed: the places [uint8].
    """

    kind: str
    shape: tuple[int, ...]
    packed: Tensor


def write_places(
    flat: dict[str, Tensor], scales: dict[str, Any], tensors: Mapping[str, Value], reference: Mapping[str, Value]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take the places out of what the codec writes; those that are written, by their names in the message, and all masks."""
    written, masks = {}, {}
    for name, value in tensors.items():
        if isinstance(value, Masked):
            places, masks[name] = flat.pop(places_of(name)), value.mask.cpu()
            held = reference.get(name)
            if isinstance(held, Masked) and torch.equal(held.mask.cpu(), masks[name]):
                scales[name]["places"] = HELD
            elif places.numel():
                written[places_of(name)] = places
    return written, masks


def announced(wire: dict[str, Tensor], scales: dict[str, Any]) -> dict[str, Announced]:
    """Which tensors a message holds in part, taken out of what the codec reads.

    Raises:
        Refused: it says something else of them.
    """
    found = {}
    for name in [n for n, about in scales.items() if isinstance(about, dict) and forms.PLACES in about]:
        about = scales.pop(name)
        shape, kind = about.get("shape"), about["places"]
        if about.keys() != {"shape", "places"} or not isinstance(kind, str):
            raise Refused(f"Tensor {quoted(name)} has places that are none.")
        if not isinstance(shape, list) or not all(is_number(side, int) and side >= 0 for side in shape):
            raise Refused(f"Tensor {quoted(name)} has sides that are no sizes.")
        packed = wire.pop(places_of(name), torch.zeros(0, dtype=torch.uint8))
        found[name] = Announced(kind, tuple(shape), packed)
    return found


def check_announced(
    parts: Mapping[str, Announced], shapes: dict[str, tuple[int, ...]], expected: Expected, length: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of a message's tensors, these by their whole shapes; nothing of that size is made before they are checked."""
    found = dict(shapes)
    for name, part in parts.items():
        wanted = expected.tensors.get(name)
        if name not in expected.masked or isinstance(wanted, Bounded):
            raise Refused(f"Tensor {quoted(name)} is there in part, unexpectedly.")
        if len(found.pop(entries_of(name), ())) != 1:
            raise Refused(f"Tensor {quoted(name)} has no row of entries.")
        if name in found:
            raise Refused(f"Tensor {quoted(name)} is there twice, whole and in part.")
        if (wanted is None or None in wanted) and elements(part.shape) > min(DENSEST * length, expected.max_bytes):
            raise Refused(f"Tensor {quoted(name)} claims {elements(part.shape)} entries in {length} bytes.")
        found[name] = part.shape
    return found


def read_masks(
    parts: Mapping[str, Announced], shapes: Mapping[str, tuple[int, ...]], reference: Mapping[str, Value]
) -> dict[str, Tensor]:
    """The masks of tensors that a message holds in part, whose whole shapes have been checked."""
    masks = {}
    for name, part in parts.items():
        count = shapes[entries_of(name)][0]
        if part.kind == HELD:
            held = reference.get(name)
            fits = isinstance(held, Masked) and tuple(held.shape) == part.shape and len(held.entries) == count
            if not isinstance(held, Masked) or not fits or part.packed.numel():
                raise Refused(f"Tensor {quoted(name)} has the places of entries that are not held here.")
            masks[name] = held.mask.cpu()
            continue
        try:
            masks[name] = mask_of(part.kind, part.packed, part.shape, count)
        except ValueError as error:
            raise Refused(f"Tensor {quoted(name)}: {plain(error)}.") from None
    return masks


def held_places(parts: Mapping[str, Any], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks that a message has left out, for its checksum.

    Args:
        parts: how the places of each are written down.
    """
    return {places_of(name): mask for name, mask in masks.items() if parts[name] == HELD}


def with_entries(reference: Mapping[str, Value] | None, masks: Mapping[str, Tensor]) -> Mapping[str, Value]:
    """What differences are taken from: of tensors that are there in part what is held in the same places, 0 where nothing is."""
    found = dict(reference or {})
    for name, mask in masks.items():
        held = found.get(name)
        if isinstance(held, Masked) and torch.equal(held.mask.cpu(), mask):
            found[entries_of(name)] = held.entries.detach().cpu()
            continue
        whole = held.dense() if isinstance(held, Masked) else held
        if isinstance(whole, Tensor) and whole.shape == mask.shape:
            found[entries_of(name)] = whole.detach().cpu().masked_select(mask)
    return found


def whole(flat: dict[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Value]:
    """The values that are there in part, their entries taken out of a message's tensors."""
    return {name: Masked(flat.pop(entries_of(name)), mask) for name, mask in masks.items()}
