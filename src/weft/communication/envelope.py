"""A few words of JSON with bytes behind them: questions to sites and their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.communication.strict import Refused, read_json, write_json


def wrap(about: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = write_json(dict(about))
    return len(text).to_bytes(4, "little") + text + data


def unwrap(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Raises:
    Refused: it is none.
    """
    length = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 + length:
        raise Refused("The message is shorter than it says.")
    return read_json(raw[4 : 4 + length], "message"), raw[4 + length :]
