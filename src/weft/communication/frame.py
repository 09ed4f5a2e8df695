"""What a message is before it is bytes, and what a receiver is ready to accept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.communication import Direction
from weft.communication.strict import is_number, is_text
from weft.tensors.forms import Value
from weft.tensors.integers import Shape

FACTS = "facts"
"""The entry for facts in :attr:`Frame.payload`, hence no name for a part."""


@dataclass(frozen=True)
class Header:
    """What a message says about itself.

    Attributes:
        method: slug of the method.
        round: index of the round, from 0.
        kind: kind of the round, as planned by the method.
        direction: ``down`` (from the server) or ``up`` (from a client).
        client: id of the client that sends or receives it; any text for a broadcast.
        weight: example count of an update; 0 on the way down.

    Raises:
        ValueError: for fields of another type or range.
    """

    method: str
    round: int
    kind: str
    direction: Direction
    client: str
    weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("method", "kind", "client"):
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) > 256 or not is_text(text):
                raise ValueError(f"{name} must be text of at most 256 characters")
        if self.direction not in ("down", "up"):
            raise ValueError("direction must be down or up")
        if not is_number(self.round, int) or not 0 <= self.round < 2**63:
            raise ValueError("round must be an integer from 0")
        if not is_number(self.weight, int, float) or not 0 <= self.weight < math.inf:
            raise ValueError("weight must be a finite number from 0")


@dataclass(frozen=True)
class Frame:
    """A message as it crosses the wire.

    Attributes:
        data: all its bytes.
        payload: the bytes that the codec made of the tensors, per part, and of the facts (``"facts"``, 0
            without any); headers, names and shapes are not in it.
    """

    data: bytes
    payload: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes on the wire, headers included."""
        return len(self.data)


@dataclass(frozen=True)
class Expected:
    """What a receiver will accept.

    Attributes:
        method, round, kind, direction: of the message, exactly.
        tensors: known names with their shapes. A dimension given as None may have any size, a shape given as
            None may be any; of a factored value the shape is (d_out, d_in), whatever its rank. Integers are
            those names whose shape is given with a bound.
        required: names that must be there.
        facts: known keys of facts.
        max_bytes: most bytes of a message, and most elements of its values of free shape or rank together.
        max_weight: largest example count.
        lowrank: names that must be factored while all other tensors must not be; None accepts either form.
        masked: names that may be there in part.
        client: id that the message must carry, None for any.
    """

    method: str
    round: int
    kind: str
    direction: str
    tensors: Mapping[str, Shape | None]
    required: frozenset[str] = frozenset()
    facts: frozenset[str] = frozenset()
    max_bytes: int = 1 << 30
    max_weight: float = field(kw_only=True)
    lowrank: frozenset[str] | None = field(default=None, kw_only=True)
    masked: frozenset[str] = field(default=frozenset(), kw_only=True)
    client: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Received:
    """A message that passed.

    Attributes:
        header: what it says about itself.
        tensors: values (never differences), all finite, on the CPU, in memory of their own.
        facts: as sent.
    """

    header: Header
    tensors: dict[str, Value]
    facts: dict[str, Any]
