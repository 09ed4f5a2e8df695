"""Tensors of which a message holds some entries: bytes of places and entries, differences in the same places, hostile masks."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch

from raw_messages import apart, whole
from weft.communication.codecs import codec
from weft.communication.wire import Expected, Header, Refused, Value, arriving, decode, encode, payload_in
from weft.tensors.keyed import generator
from weft.tensors.masked import Masked

HEADER = Header("prunefl", 3, "train", "up", "client-1", 12)
DENSE, FEW, W = "lora/x/A", "lora/x/B", "head/x/bias"
CODECS = ["identity", "half", "quant8", "topk:share=0.3+qsgd:levels=3,bucket=16+entropy"]


def values() -> dict[str, Value]:
    torch.manual_seed(0)
    some = torch.rand(13, 5) < 0.5
    few = torch.zeros(40, 50, dtype=torch.bool)
    few[7, 3] = few[31, 49] = True
    return {DENSE: Masked.of(torch.randn(13, 5), some), FEW: Masked.of(torch.randn(40, 50), few), W: torch.arange(64.0)}


def held() -> dict[str, Value]:
    """What the receiver holds: one tensor whole, of the other the same entries."""
    mine = values()[FEW]
    assert isinstance(mine, Masked)
    return {DENSE: torch.full((13, 5), 0.25), FEW: Masked(mine.entries + 1, mine.mask), W: torch.ones(64)}


def expected(**more: Any) -> Expected:
    known = {DENSE: (13, 5), FEW: (40, 50), W: (64,)} | more.pop("tensors", {})
    about: dict[str, Any] = {"masked": frozenset({DENSE, FEW}), "max_weight": 100, "lowrank": frozenset()}
    return Expected("prunefl", 3, "train", "up", known, **about | more)


def frame(text: str = "identity", reference: dict[str, Value] | None = None, what: dict[str, Value] | None = None) -> Any:
    streams: dict[str, Any] = {"generator": generator(0), "common": generator(1)}
    return encode(HEADER, what or values(), {}, codec(text), reference=reference, **streams)


def same(found: Value, wanted: Value, tolerance: float) -> None:
    assert isinstance(found, Masked)
    assert isinstance(wanted, Masked)
    assert torch.equal(found.mask, wanted.mask)
    torch.testing.assert_close(found.entries, wanted.entries, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reference", [None, held()], ids=["alone", "beside what is held"])
@pytest.mark.parametrize("text", CODECS)
def test_they_arrive_with_their_places_whatever_the_codec(text: str, reference: dict[str, Value] | None) -> None:
    data = frame(text, reference).data
    for found in (decode(data, expected(), reference=reference).tensors, arriving(data, reference or {})):
        for name in (DENSE, FEW):
            same(found[name], values()[name], {"identity": 0.0, "half": 1e-2, "quant8": 5e-2}.get(text, 10.0))
        assert isinstance(found[W], torch.Tensor)


def test_they_take_the_bytes_of_their_entries_and_of_a_bit_or_an_index_each() -> None:
    dense, few = values()[DENSE], values()[FEW]
    assert isinstance(dense, Masked)
    assert isinstance(few, Masked)
    bits, index = -(-13 * 5 // 8), -(-2 * 11 // 8)
    wanted = 4 * len(dense.entries) + bits + 4 * len(few.entries) + index
    sent = frame()
    assert sent.payload["lora"] == wanted
    assert payload_in(sent.data, 1 << 20) == sent.payload


def test_places_that_the_receiver_holds_are_not_sent() -> None:
    before, after = frame(), frame(reference=held())
    assert before.payload["lora"] - after.payload["lora"] == -(-2 * 11 // 8)
    same(decode(after.data, expected(), reference=held()).tensors[FEW], values()[FEW], 0.0)


def test_differences_are_taken_in_the_same_places() -> None:
    """Entries equal to what is held are differences of exactly zero, which a codec of a bit an entry gives back as they are."""
    base = torch.randn(13, 5)
    mask = torch.rand(13, 5) < 0.5
    sent = frame("sign", {DENSE: base}, {DENSE: Masked.of(base, mask)})
    found = decode(sent.data, expected(), reference={DENSE: base}).tensors[DENSE]
    same(found, Masked.of(base, mask), 0.0)


def test_entries_that_the_receiver_does_not_hold_are_differences_to_zero() -> None:
    mask = torch.tensor([True, True, False])
    known: dict[str, Value] = {W: Masked(torch.tensor([5.0]), torch.tensor([True, False, False]))}
    sent = frame("quant8", known, {W: Masked(torch.tensor([5.0, 3.0]), mask)})
    allowed = expected(tensors={W: (3,)}, masked=frozenset({W}))
    found = decode(sent.data, allowed, reference=known).tensors[W]
    same(found, Masked(torch.tensor([5.0, 3.0]), mask), 1e-6)


def test_what_may_be_there_in_part_may_be_whole() -> None:
    sent = encode(HEADER, {DENSE: torch.ones(13, 5)}, {}, codec("identity")).data
    assert isinstance(decode(sent, expected()).tensors[DENSE], torch.Tensor)


def test_what_must_be_there_may_be_there_in_part() -> None:
    decode(frame().data, expected(required=frozenset({DENSE})))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"masked": frozenset({FEW})}, "in part, unexpectedly"),
        ({"tensors": {DENSE: (5, 13)}}, r"shape \(13, 5\)"),
        ({"tensors": {DENSE: (None, 4)}}, r"shape \(13, 5\)"),
    ],
)
def test_another_agreement_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        decode(frame().data, expected(**more))


def test_unknown_ones_are_refused() -> None:
    stray = frame(what={"x/y/z": Masked(torch.zeros(1), torch.tensor([True, False]))}).data
    with pytest.raises(Refused, match="unexpectedly"):
        decode(stray, expected())


@pytest.mark.parametrize(
    "about",
    [
        {"places": "bits", "shape": [65]},
        {"places": "bits", "shape": [13, 5.0]},
        {"places": "bits", "shape": [13, -5]},
        {"places": "bits", "shape": "13"},
        {"places": "list", "shape": [13, 5]},
        {"places": "all", "shape": [13, 5]},
        {"places": "held", "shape": [13, 5]},
        {"places": "none", "shape": [13, 5]},
        {"places": ["bits"], "shape": [13, 5]},
        {"places": "bits"},
        {"places": "bits", "shape": [13, 5], "more": 1},
        {"below": 2, "shape": [13, 5]},
        1.0,
    ],
)
def test_other_words_about_them_are_refused(about: Any) -> None:
    header, table, raw = apart(frame().data)
    decode(whole(header, table, raw), expected())
    with pytest.raises(Refused):
        decode(whole(header | {"scales": header["scales"] | {DENSE: about}}, table, raw), expected())


def with_other(**tensors: torch.Tensor | None) -> bytes:
    """The message with other bytes for places or entries of the first tensor."""
    data = frame().data
    held_here = safetensors.torch.load(data[10 + int.from_bytes(data[6:10], "little") :])
    for role, tensor in tensors.items():
        del held_here[f"{DENSE}::{role}"]
        if tensor is not None:
            held_here[f"{DENSE}::{role}"] = tensor
    body = safetensors.torch.save(held_here)
    table = body[8 : 8 + int.from_bytes(body[:8], "little")]
    return whole(apart(data)[0], table, body[8 + len(table) :])


@pytest.mark.parametrize(
    "tensors",
    [
        {"places": None},
        {"places": torch.zeros(9, dtype=torch.uint8)},
        {"places": torch.full((9,), 255, dtype=torch.uint8)},
        {"places": torch.full((8,), 255, dtype=torch.uint8)},
        {"places": torch.zeros(9)},
        {"entries": None},
        {"entries": torch.zeros(3)},
        {"entries": torch.zeros(1, 30)},
    ],
    ids=str,
)
def test_other_places_or_entries_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        decode(with_other(**tensors), expected())


def test_places_that_are_held_otherwise_are_noticed() -> None:
    data = frame(reference=held()).data
    mine = held()[FEW]
    assert isinstance(mine, Masked)
    for other in (torch.ones(40, 50), Masked(mine.entries, mine.mask.flip(0)), None):
        known = {n: v for n, v in (held() | {FEW: other}).items() if v is not None}
        with pytest.raises(Refused, match="held here"):
            decode(data, expected(), reference=known)
    with pytest.raises(Refused, match="held here"):
        decode(data, expected())


def test_a_shape_that_is_not_known_has_to_be_written_out() -> None:
    sent = frame(what={W: Masked(torch.ones(3), torch.ones(3, dtype=torch.bool))}).data
    header, table, raw = apart(sent)
    free = expected(tensors={W: (None,)}, masked=frozenset({W}))
    decode(sent, free)
    header["scales"][W] = {"places": "list", "shape": [10**12]}
    with pytest.raises(Refused, match="claims"):
        decode(whole(header, table, raw), free)


def test_a_tensor_is_there_once() -> None:
    header, table, raw = apart(frame().data)
    table[DENSE] = table.pop(f"{DENSE}::entries") | {"dtype": "F32"}
    with pytest.raises(Refused):
        decode(whole(header, table, raw), expected())
