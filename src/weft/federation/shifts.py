"""Shifts: what differences are taken from is what the client received and a shift of its own, which both ends move alike.

The shift of a tensor is never sent. Both ends add α · (what has arrived - what it was the difference to) to it, α by
:meth:`weft.communication.codecs.codec.Codec.alpha`: the client as soon as it has written its update, since it can read what will
arrive, and the server when the update counts. If that is not the client's last, the client is told so and takes its step back; if
it has lost its memory, its differences are taken from what it received alone, which the server notices by the checksum that is in
every message with differences, and begins anew for these tensors. Where neither fits, the update is refused and both begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weft.communication.codecs import Codec
from weft.federation.memory import Memory
from weft.federation.turn import Turn
from weft.tensors.forms import Value

SHIFT = "shift"
"""First word of the names of shifts, in a client's memory and in the server's notes of it."""


def moves(codec: Codec) -> bool:
    """Whether this codec's differences are taken from shifted values."""
    return codec.alpha(1) > 0


def shifted(held: Mapping[str, Value], shift: Mapping[str, Tensor]) -> dict[str, Value]:
    """What differences are taken from."""
    found = dict(held)
    for name, by in shift.items():
        value = found.get(name)
        if isinstance(value, Tensor) and value.shape == by.shape:
            found[name] = (value.detach().to("cpu", by.dtype) + by).to(value.dtype)
    return found


def steps(codec: Codec, arrived: Mapping[str, Value], reference: Mapping[str, Value]) -> dict[str, Tensor]:
    """By how much the shifts of an update's tensors move."""
    found = {}
    for name, value in arrived.items():
        base = reference.get(name)
        if isinstance(value, Tensor) and isinstance(base, Tensor) and value.shape == base.shape and value.dtype == base.dtype:
            found[name] = codec.alpha(value.numel()) * (value - base.detach().to("cpu"))
    return found


def of_client(turn: Turn) -> Memory:
    """A client's own."""
    return Memory(turn.client, SHIFT, turn.counted, exact=True)


def of_notes(notes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of a client at the server."""
    prefix = f"{SHIFT}/"
    return {n.removeprefix(prefix): v for n, v in notes.items() if n.startswith(prefix)}


def noted(shift: Mapping[str, Tensor], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Notes of a client's shifts, moved; one of another size than what it is moved by begins anew."""
    found = {}
    for name, step in by.items():
        old = shift.get(name)
        found[f"{SHIFT}/{name}"] = step if old is None or old.shape != step.shape else old + step
    return found
