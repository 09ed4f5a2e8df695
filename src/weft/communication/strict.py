"""Reading what a stranger wrote: JSON and safetensors, strictly, within limits, never unpickled."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import safetensors.torch
from torch import Tensor

from weft.errors import WeftError

TEXT_LIMIT = 4 << 20
"""Most bytes of any JSON read or written."""

NESTS_LIMIT = 100_000
"""Most lists and dicts in it: of few bytes each, they cost a reader far more time and memory than numbers."""

FACTS_DEPTH = 6
"""Deepest nesting of lists and dicts in facts."""

# What codecs may put on the wire. Names as in the safetensors format.
_WIRE_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


class Refused(WeftError):
    """A message that must not be used. The text is one sentence that says why, without control characters."""


def plain(text: object, limit: int = 120) -> str:
    """Text from a stranger, fit for a sentence or a log: ASCII, one line, cut to ``limit`` characters."""
    shown = ascii(str(text))[1:-1]
    return shown if len(shown) <= limit else shown[:limit] + "..."


def quoted(text: object) -> str:
    """The same between quotes, cut short: for names."""
    return f'"{plain(text, 60)}"'


def read_json(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``raw``; ``what`` names it in the reason.

    Raises:
        Refused: for anything else: no object, a key given twice, NaN, Infinity, bad UTF-8, too deep, too
            long.
    """
    if not is_modest(raw):
        raise Refused(f"The {what} has more than {TEXT_LIMIT} bytes or more than {NESTS_LIMIT} lists and objects.")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The {what} is not strict JSON: {plain(error)}.") from None
    if not isinstance(value, dict):
        raise Refused(f"The {what} is not a JSON object.")
    return value


def is_modest(raw: bytes) -> bool:
    """Whether JSON is within the limits, told without parsing it."""
    return len(raw) <= TEXT_LIMIT and raw.count(b"[") + raw.count(b"{") <= NESTS_LIMIT


def write_json(value: dict[str, Any]) -> bytes:
    """Compact JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def check_facts(facts: dict[str, Any]) -> None:
    """Facts are simple: bool, int within ±2^63, finite float, str, and lists or str-keyed dicts of those.

    Raises:
        ValueError: naming the fact that is not.
    """
    for name, value in facts.items():
        if not isinstance(name, str) or not is_text(name):
            raise ValueError(f"a fact is named {quoted(name)}, which is not plain text")
        if reason := _not_simple(value, depth=1):
            raise ValueError(f"fact {quoted(name)} holds {reason}")


def is_text(text: str) -> bool:
    """Whether UTF-8 can write ``text``: escapes in JSON can hold halves of characters, which fail later."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object, *kinds: type) -> bool:
    """Whether ``value`` is of one of these types; a bool is no number, though Python says so."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def read_tensors(body: bytes) -> dict[str, Tensor]:
    """The tensors in safetensors bytes, as copies that own their memory.

    Raises:
        Refused: if the bytes are anything else, name a tensor twice, or hold a dtype no codec writes.
    """
    if len(body) < 8:
        raise Refused("The message ends before its tensors.")
    (length,) = struct.unpack_from("<Q", body)
    if length > len(body) - 8:
        raise Refused(f"The table of tensors claims {length} bytes where {len(body) - 8} are left.")
    # The library keeps the last of two entries of one name, and knows dtypes that torch can't hold
    for name, entry in read_json(body[8 : 8 + length], "table of tensors").items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or dtype not in _WIRE_DTYPES:
            raise Refused(f"Tensor {quoted(name)} has the dtype {quoted(dtype)}, which is not allowed.")
    try:
        return safetensors.torch.load(body)
    except Exception as error:  # the library has no common class for its own, torch's and Python's errors
        raise Refused(f"The tensors cannot be read: {plain(error)}.") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _not_simple(value: object, depth: int) -> str:
    """What is wrong with a fact, or ``""``."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return "" if is_text(value) else "half of a character"
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else "an integer beyond 63 bits"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value}, which is not finite"
    if not isinstance(value, list | dict):
        return f"a value of type {type(value).__name__}"
    if depth == FACTS_DEPTH:
        return f"more than {FACTS_DEPTH} levels of lists and dicts"
    if isinstance(value, list):
        return next((reason for item in value if (reason := _not_simple(item, depth + 1))), "")
    for name, item in value.items():
        if not isinstance(name, str) or not is_text(name):
            return f"the key {quoted(name)}, which is not plain text"
        if reason := _not_simple(item, depth + 1):
            return reason
    return ""
