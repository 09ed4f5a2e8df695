"""What a stranger's message costs in memory, whatever the codec: a fixed multiple of the entries that a receiver allows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from measured import measured, plain_header
from raw_messages import whole
from weft.communication.codecs import codec

LIMIT = 4 << 20
N = LIMIT - 4096  # entries
TEXTS = (
    "sign",
    "qsgd:levels=7,bucket=512",
    "nf4",
    "half",
    "block8",
    "nnadq",
    "topk:share=0.5",
    "randk:share=0.5",
    "quant8+entropy",
)


def message(text: str) -> bytes:
    """N entries, as the codec writes them."""
    half = N // 2
    laid: dict[str, list[tuple[str, str, list[int]]]] = {
        "sign": [("a/x", "U8", [N // 8]), ("a/x::scale", "F32", [])],
        "qsgd": [("a/x", "U8", [half]), ("a/x::norm", "F32", [N // 512])],
        "nf4": [("a/x", "U8", [half]), ("a/x::scale", "F32", [N // 64])],
        "half": [("a/x", "F16", [N]), ("a/x::scale", "F32", [])],
        "block8": [("a/x", "I8", [N]), ("a/x::scale", "F32", [N // 256])],
        "nnadq": [("a/x", "U8", [N // 8]), ("a/x::range", "F32", [2])],
        "topk": [("a/x", "F16", [half]), ("a/x::at", "U8", [N // 8])],
        "randk": [("a/x", "F16", [half])],
        "quant8+entropy": [("a/x", "U8", [2]), ("a/x::scale", "F32", [])],
    }
    name = next(n for n in laid if text.startswith(n))
    size = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}
    table: dict[str, Any] = {}
    body = b""
    for tensor, dtype, shape in laid[name]:
        length = size[dtype] * math.prod(shape)
        table[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + length]}
        body += {"topk": b"\x55", "quant8+entropy": b"\1"}.get(name, b"\0") * length if dtype == "U8" else bytes(length)
    own = name in ("half", "block8")
    meta = {} if own else {"shapes": [[N]]}
    meta |= {"whole": []} if name in ("topk", "randk") else {}
    meta |= {"seed": 1} if name == "randk" else {}
    return whole(plain_header(codec=codec(text).text, meta=meta), table, body)


@pytest.mark.slow
def test_every_codec_is_read_in_little_more_memory_than_eight_bit_levels() -> None:
    known = {"a/x": [N]}
    found = measured([message(text) for text in TEXTS for _ in range(2)], LIMIT * 2, known)[1::2]
    assert [said for _, _, said in found] == [""] * len(TEXTS)
    costs = {text: grown / N for text, (grown, _, _) in zip(TEXTS, found, strict=True)}
    assert max(costs.values()) < 30, costs
