"""The largest entries of named tensors, and tensors written down as the few entries that are not 0.

The places of the entries are one string: a bit for each entry of all tensors in the order of their names, in base 85. So d
places take d / 6.4 bytes as text, whatever the number of entries.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from weft.errors import UserError

LONGEST = 3 << 20
"""Most characters of a string of places: a message has room for as many, and for some more."""


def largest(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """TOPₖ of all tensors as one vector of d entries: the k = max(round(share · d), 1) largest magnitudes stay, the rest is 0."""
    flat = torch.cat([v.flatten() for v in values.values()])
    found = torch.zeros_like(flat)
    chosen = flat.abs().topk(max(round(share * len(flat)), 1)).indices
    found[chosen] = flat[chosen]
    pieces = found.split([v.numel() for v in values.values()])
    return {n: piece.view_as(v) for (n, v), piece in zip(values.items(), pieces, strict=True)}


def entries(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The entries [m] of each tensor that are not 0, and their places.

    Raises:
        UserError: there are too many places for a message.
    """
    names = sorted(values)
    bits = np.concatenate([(values[n] != 0).flatten().cpu().numpy() for n in names])
    places = base64.b85encode(np.packbits(bits).tobytes()).decode()
    if len(places) > LONGEST:
        raise UserError(
            f"the places of some of {len(bits):,} entries do not fit into a message: send all of them, or tune fewer parameters."
        )
    return {n: v[v != 0] for n, v in values.items()}, places


def dense(found: Mapping[str, Tensor], places: object, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Undo :func:`entries`, for tensors of these shapes.

    Args:
        found, places: from anyone.

    Raises:
        ValueError: they do not fit together, or not the shapes.
    """
    names = sorted(shapes)
    sizes = [math.prod(shapes[n]) for n in names]
    raw = np.frombuffer(base64.b85decode(places), np.uint8) if isinstance(places, str) else np.zeros(0, np.uint8)
    if found.keys() != shapes.keys() or len(raw) != math.ceil(sum(sizes) / 8):
        raise ValueError("the entries are of other tensors than the places")
    bits = torch.from_numpy(np.unpackbits(raw).astype(bool))
    if bits[sum(sizes) :].any():
        raise ValueError("there are places behind the last entry")
    whole: dict[str, Tensor] = {}
    for name, mask in zip(names, bits[: sum(sizes)].split(sizes), strict=True):
        some = found[name]
        if some.dim() != 1 or len(some) != int(mask.sum()):
            raise ValueError(f"{name!r} has {some.numel()} entries in {int(mask.sum())} places")
        whole[name] = some.new_zeros(mask.shape).masked_scatter(mask.to(some.device), some).view(shapes[name])
    return whole
