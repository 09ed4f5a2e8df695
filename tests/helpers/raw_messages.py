"""Messages and answers taken apart, put together, and edited, as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from weft.communication.codecs import codec
from weft.communication.exact import MARK
from weft.communication.frame import Expected, Received
from weft.communication.wire import decode, encode
from weft.federation.message import Value
from weft.tensors.integers import Bounded, Shape


def apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, table of tensors, and their bytes, by the format's description."""
    (length,) = struct.unpack_from("<I", data, 6)
    body = data[10 + length :]
    (inner,) = struct.unpack_from("<Q", body)
    return json.loads(data[10 : 10 + length]), json.loads(body[8 : 8 + inner]), body[8 + inner :]


def whole(header: Any, table: Any, raw: bytes, claims: tuple[int | None, int | None] = (None, None)) -> bytes:
    """A message from its three layers (JSON values or their text), with other lengths claimed if given."""
    first, second = (x if isinstance(x, bytes) else json.dumps(x).encode() for x in (header, table))
    outer, inner = (len(t) if c is None else c for t, c in zip((first, second), claims, strict=True))
    return struct.pack("<4sHI", b"WEFT", 1, outer) + first + struct.pack("<Q", inner) + second + raw


numbers = st.sampled_from(
    [0, 1, 2, 3, 7, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1, 0.5, 1e308, True, None, "3"]
)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)


def said(about: Any, data: bytes) -> bytes:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return len(text).to_bytes(4, "little") + text + data


def read(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:4], "little")
    return json.loads(raw[4 : 4 + length]), raw[4 + length :]


Edit = Callable[[dict[str, Value]], Mapping[str, Value]]


def values(answer: bytes, held: Mapping[str, Value] | None = None) -> Received:
    """What the update in an answer says, by the project's own reading.

    Args:
        held: what its sender had been sent, whose places it leaves out where it has the same.
    """
    header, table, _ = apart(read(answer)[1])
    names = {n.split(MARK)[0] for n in table if n != "__metadata__"}
    integers = {n: Bounded(tuple(a["shape"]), a["below"]) for n, a in header["scales"].items() if "below" in a}
    shapes: dict[str, Shape | None] = dict.fromkeys(names) | integers
    expected = Expected(
        **{n: header[n] for n in ("method", "round", "kind", "direction")},
        tensors=shapes,
        facts=frozenset(header["facts"]),
        max_weight=1e9,
        masked=frozenset(names - integers.keys()),
    )
    return decode(read(answer)[1], expected, reference=held)


def edited(answer: bytes, edit: Edit, weight: float | None = None, held: Mapping[str, Value] | None = None) -> bytes:
    """The answer with other tensors, by the project's own reading and writing.

    Args:
        held: see :func:`values`.
    """
    received = values(answer, held)
    tensors = edit({n: v.clone() if isinstance(v, Tensor) else v for n, v in received.tensors.items()})
    head = received.header if weight is None else replace(received.header, weight=weight)
    return said(read(answer)[0], encode(head, tensors, received.facts, codec("identity"), reference=held).data)
