"""Integers in a message: exact whatever the codec, billed by their bits, and refused where they are not what was agreed on."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch

from raw_messages import apart, whole
from weft.communication.codecs import codec
from weft.communication.wire import Expected, Header, Refused, Value, arriving, decode, encode, payload_in
from weft.tensors.integers import Bounded, Integers
from weft.tensors.keyed import generator

HEADER = Header("gf-pt", 3, "train", "up", "client-1", 12)
IDS, MASK, W = "ids/prompt/0", "mask/x/0", "head/x/bias"
CODECS = ["identity", "quant8", "topk:share=0.3+qsgd:levels=3,bucket=16+entropy"]


def values() -> dict[str, Value]:
    ids = Integers(torch.arange(50).reshape(10, 5) * 1000, 50265)
    mask = Integers((torch.arange(13) % 3 == 0).long(), 2)
    return {IDS: ids, MASK: mask, W: torch.arange(64.0)}


def expected(**shapes: Any) -> Expected:
    known = {IDS: Bounded((10, 5), 50265), MASK: Bounded((None,), 2), W: (64,)} | shapes.pop("tensors", {})
    return Expected("gf-pt", 3, "train", "up", known, max_weight=100, lowrank=frozenset(), **shapes)


def sent(text: str = "identity") -> bytes:
    return encode(
        HEADER, values(), {}, codec(text), reference={W: torch.ones(64)}, generator=generator(0), common=generator(1)
    ).data


@pytest.mark.parametrize("text", CODECS)
def test_they_arrive_as_they_left_whatever_the_codec(text: str) -> None:
    for found in (
        decode(sent(text), expected(), reference={W: torch.ones(64)}).tensors,
        arriving(sent(text), {W: torch.ones(64)}),
    ):
        for name in (IDS, MASK):
            was, now = values()[name], found[name]
            assert isinstance(was, Integers)
            assert isinstance(now, Integers)
            assert torch.equal(was.values, now.values)
            assert was.below == now.below
        assert isinstance(found[W], torch.Tensor)


@pytest.mark.parametrize("text", CODECS)
def test_they_are_billed_by_their_bits(text: str) -> None:
    frame = encode(HEADER, values(), {}, codec(text), generator=generator(0), common=generator(1))
    assert (frame.payload["ids"], frame.payload["mask"]) == (50 * 16 // 8, 2)
    assert payload_in(frame.data, 1 << 20) == frame.payload


def test_what_must_be_there_may_be_integers() -> None:
    decode(sent(), expected(required=frozenset({IDS, W})))
    with pytest.raises(Refused, match="is missing"):
        decode(encode(HEADER, {W: torch.ones(64)}, {}, codec("identity")).data, expected(required=frozenset({IDS})))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({IDS: Bounded((10, 5), 50264)}, "bound of 50265"),
        ({IDS: Bounded((5, 10), 50265)}, r"shape \(10, 5\)"),
        ({IDS: Bounded((None,), 50265)}, r"shape \(10, 5\)"),
        ({IDS: (10, 5)}, "unexpectedly"),
        ({W: Bounded((64,), 2)}, "not of integers"),
        ({IDS: None}, "unexpectedly"),
    ],
)
def test_another_agreement_is_refused(tensors: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        decode(sent(), expected(tensors=tensors))


def test_unknown_integers_are_refused() -> None:
    with pytest.raises(Refused, match="unexpectedly"):
        decode(encode(HEADER, {"x/y/z": Integers(torch.zeros(1, dtype=torch.int64), 2)}, {}, codec("identity")).data, expected())


@pytest.mark.parametrize(
    "about",
    [
        {"below": 50265, "shape": [50]},
        {"below": 50265, "shape": [10, 5.0]},
        {"below": 50265, "shape": [10, True]},
        {"below": 50265, "shape": [10, -5]},
        {"below": 50265, "shape": "10"},
        {"below": True, "shape": [10, 5]},
        {"below": "50265", "shape": [10, 5]},
        {"below": 50265},
        {"below": 50265, "shape": [10, 5], "more": 1},
        {},
        3.0,
        [1],
        None,
    ],
)
def test_other_words_about_them_are_refused(about: Any) -> None:
    header, table, raw = apart(sent())
    decode(whole(header, table, raw), expected())
    with pytest.raises(Refused):
        decode(whole(header | {"scales": header["scales"] | {IDS: about}}, table, raw), expected())


@pytest.mark.parametrize("bits", [torch.zeros(99), *(torch.full((n,), 255, dtype=torch.uint8) for n in (99, 100)), None])
def test_other_bits_are_refused(bits: torch.Tensor | None) -> None:
    data = sent()
    header = apart(data)[0]
    tensors = safetensors.torch.load(data[10 + int.from_bytes(data[6:10], "little") :])
    del tensors[IDS + "::bits"]
    if bits is not None:
        tensors[IDS + "::bits"] = bits
    body = safetensors.torch.save(tensors)
    table = body[8 : 8 + int.from_bytes(body[:8], "little")]
    with pytest.raises(Refused):
        decode(whole(header, table, body[8 + len(table) :]), expected())


def test_integers_of_free_size_that_take_no_bits_cannot_claim_the_memory_of_the_receiver() -> None:
    data = encode(HEADER, {MASK: Integers(torch.zeros(3, dtype=torch.int64), 1)}, {}, codec("identity")).data
    header, table, raw = apart(data)
    header["scales"][MASK]["shape"] = [10**12]
    with pytest.raises(Refused, match="claims"):
        decode(whole(header, table, raw), expected(tensors={MASK: Bounded((None,), 1)}))


def test_a_tensor_of_whole_numbers_is_no_value_of_its_own() -> None:
    with pytest.raises(ValueError, match="exact things are Integers"):
        encode(HEADER, {W: torch.zeros(3, dtype=torch.uint8)}, {}, codec("identity"))
