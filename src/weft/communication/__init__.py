"""What crosses the wire between server and clients, and what it costs.

- :mod:`weft.communication.wire`: a message as bytes, and its validation on arrival.
- :mod:`weft.communication.frame`: what a message is before it is bytes.
- :mod:`weft.communication.codecs`: how tensors are written down, e.g. in full or in 8 bits.
- :mod:`weft.communication.ledger`: the bytes sent, counted per round, phase, direction, part and client.
- :mod:`weft.communication.strict`: reading what a stranger wrote.

Import from these modules: they are not imported here, so that counting bytes does not load torch.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["down", "up"]
"""From the server to a client, or back."""
