"""What a client enters its turn with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.federation.client import ClientState
from weft.federation.layout import Adaptation
from weft.federation.memory import NONE
from weft.tensors.forms import Value


@dataclass
class Turn:
    """One client in one round.

    Attributes:
        client: its rows and what it remembers.
        adaptation: its parts.
        held: its DOWN values, received now or earlier, and start values of others that were handed to it.
        counted: the round of its last turn that counted, -1 = none.
        facts: what it has received beside tensors. beside: tensors that it has received and that are of no part.
    """

    client: ClientState
    adaptation: Adaptation
    held: Mapping[str, Value]
    facts: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Value] = field(default_factory=dict)
    counted: int = NONE
