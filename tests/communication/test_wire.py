"""What holds of every message that is what its receiver expects."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.codecs import Codec, Identity, Quant8
from weft.communication.wire import Expected, Frame, Header, Received, Value, decode, encode
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank

HEADER = Header("fedit", 3, "train", "up", "client-1", 12)
CODECS_HERE = [Identity(), Quant8()]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def send(
    tensors: Mapping[str, Value],
    codec: Codec,
    *,
    reference: Mapping[str, Value] | None = None,
    facts: Mapping[str, Any] | None = None,
    header: Header = HEADER,
) -> tuple[Frame, Received]:
    """A message to a receiver that holds the same reference and expects exactly these names and shapes."""
    stream = generator(0, "rounding")
    frame = encode(header, tensors, facts or {}, codec, reference=reference, generator=stream)
    expected = Expected(
        "fedit",
        3,
        "train",
        "up",
        {name: tuple(value.shape) for name, value in tensors.items()},
        required=frozenset(tensors),
        facts=frozenset(facts or {}),
        max_weight=header.weight,
        lowrank=frozenset(name for name, value in tensors.items() if isinstance(value, LowRank)),
        client="client-1",
    )
    return frame, decode(frame.data, expected, reference=reference)


def some_tensors(seed: int) -> dict[str, Tensor]:
    g = generator(seed, "tensors")
    shapes = {"lora/block.0.query/A": (2, 3), "lora/block.0.query/B": (4, 2), "head/classifier/bias": (5,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def some_lowrank(seed: int) -> LowRank:
    g = generator(seed, "lowrank")
    return LowRank(torch.randn(4, 6, generator=g), torch.randn(6, 3, generator=g), 0.3)


def pieces(value: Value) -> list[Tensor]:
    return [value.B, value.A] if isinstance(value, LowRank) else [value]


def same(a: Value, b: Value) -> bool:
    """Equal in kind, scale, dtype, shape and every bit."""
    if type(a) is not type(b) or getattr(a, "scale", None) != getattr(b, "scale", None):
        return False
    return all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (x, y)))
        for x, y in zip(pieces(a), pieces(b), strict=True)
    )


sizes = st.integers(0, 4)


@st.composite
def drawn_tensors(draw: st.DrawFn, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    if shape is None:
        shape = tuple(draw(st.lists(sizes, max_size=3)))
    if dtype is None:
        dtype = draw(st.sampled_from(DTYPES))
    return torch.randn(shape, generator=generator(draw(st.integers(0, 99)), "drawn")).to(dtype)


@st.composite
def drawn_lowranks(draw: st.DrawFn) -> LowRank:
    rank, dtype = draw(sizes), draw(st.sampled_from(DTYPES))
    B, A = draw(drawn_tensors((draw(sizes), rank), dtype)), draw(drawn_tensors((rank, draw(sizes)), dtype))
    return LowRank(B, A, draw(st.floats(allow_nan=False, allow_infinity=False)))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
words = texts.filter(lambda text: text and "/" not in text and ":" not in text)
names = st.lists(words, min_size=1, max_size=3).map("/".join).filter(lambda name: name.split("/")[0] != "facts")
leaves = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts
facts_ = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3), max_leaves=5)


@given(
    st.dictionaries(names, drawn_tensors() | drawn_lowranks(), max_size=4),
    st.dictionaries(texts, leaves | st.lists(facts_, max_size=2), max_size=3),
    st.integers(0, 10**6) | st.floats(0, 1e9),
)
def test_identity_returns_what_was_sent_bit_for_bit_and_bills_its_bytes(
    tensors: dict[str, Value], facts: dict[str, Any], weight: float
) -> None:
    header = replace(HEADER, weight=weight)
    frame, received = send(tensors, Identity(), facts=facts, header=header)
    assert received.header == header
    assert received.facts == facts
    assert received.tensors.keys() == tensors.keys()
    assert all(same(received.tensors[name], value) for name, value in tensors.items())

    size = {"facts": len(json.dumps(facts, separators=(",", ":"))) if facts else 0}
    for name, value in tensors.items():
        part = name.split("/")[0]
        size[part] = size.get(part, 0) + sum(tensor.nbytes for tensor in pieces(value))
    assert frame.payload == size
    assert frame.size == len(frame.data) > sum(size.values())


@pytest.mark.parametrize("codec", CODECS_HERE, ids=lambda codec: codec.name)
def test_equal_messages_are_equal_bytes_in_whatever_order_they_are_given(codec: Codec) -> None:
    frames = set()
    for order in itertools.permutations((some_tensors(0) | {"base/x": some_lowrank(0)}).items()):
        facts = {"b": 1, "a": [2]} if order[0][0] == "base/x" else {"a": [2], "b": 1}
        frames.add(send(dict(order), codec, reference=some_tensors(1), facts=facts)[0].data)
    assert len(frames) == 1


@pytest.mark.parametrize("codec", CODECS_HERE, ids=lambda codec: codec.name)
def test_neither_side_writes_to_or_shares_memory_with_what_it_was_given(codec: Codec) -> None:
    tensors, reference = some_tensors(0) | {"base/x": some_lowrank(0)}, some_tensors(1)
    frame, received = send(tensors, codec, reference=reference)
    for value in received.tensors.values():
        for tensor in pieces(value):
            tensor.fill_(7.0)
    assert all(same(tensors[name], value) for name, value in some_tensors(0).items())
    assert same(tensors["base/x"], some_lowrank(0))
    assert all(same(reference[name], value) for name, value in some_tensors(1).items())
    assert send(tensors, codec, reference=reference)[0] == frame


def test_views_slices_and_tied_tensors_can_be_sent() -> None:
    stack = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    tensors = {"a/x": stack[1], "a/y": stack[1].mT, "a/z": stack[1]}
    received = send(tensors, Identity())[1].tensors
    assert all(same(received[name], tensor.detach()) for name, tensor in tensors.items())


@pytest.mark.parametrize("codec", CODECS_HERE, ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_did_not_move_arrives_bit_for_bit(codec: Codec, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    held = torch.tensor([0.0, -0.0, 1 / 3, -7.7, limits.tiny, -limits.tiny / 2, limits.max], dtype=dtype)
    received = send({"head/x": held}, codec, reference={"head/x": held})[1]
    assert same(received.tensors["head/x"], held)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_difference_is_off_by_less_than_a_127th_of_the_largest_move(dtype: torch.dtype) -> None:
    g = generator(0, "moves")
    old = (torch.randn(50, generator=g) * 100).to(dtype)
    new = (old.double() * (1 + 0.01 * torch.rand(50, generator=g).double())).to(dtype)
    received = send({"head/x": new}, Quant8(), reference={"head/x": old})[1].tensors["head/x"]
    assert isinstance(received, Tensor)
    assert received.dtype == dtype
    step = float((new.double() - old.double()).abs().max()) / 127
    # Levels are decoded to float32, sums are then rounded to the dtype
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    error = float((received.double() - new.double()).abs().max())
    assert error <= step + rounding * float(new.double().abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_difference_is_taken_in_no_less_than_float32(dtype: torch.dtype) -> None:
    """A lone element is its tensor's largest and arrives exactly, if 1000 - 0.125 survives: half precision has 1000 or 999.5."""
    old, new = torch.tensor([1000.0], dtype=dtype), torch.tensor([0.125], dtype=dtype)
    assert same(send({"head/x": new}, Quant8(), reference={"head/x": old})[1].tensors["head/x"], new)


def test_factored_values_and_values_new_to_the_receiver_are_sent_as_values() -> None:
    tensors = some_tensors(0) | {"base/x": some_lowrank(0)}
    reference = some_tensors(1) | {"base/x": some_lowrank(1)}
    del reference["head/classifier/bias"]
    reference["lora/block.0.query/A"] = torch.zeros(3, 2)  # another shape: nothing to take a difference from
    frame, received = send(tensors, Quant8(), reference=reference)
    (length,) = struct.unpack_from("<I", frame.data, 6)
    marks = json.loads(frame.data[10 : 10 + length])["marks"]
    order = sorted({"base/x::A", "base/x::B"} | set(some_tensors(0)))
    assert [name for name, mark in zip(order, marks, strict=True) if mark == "F"] == ["lora/block.0.query/B"]
    delta = received.tensors["base/x"]
    assert isinstance(delta, LowRank)
    assert delta.scale == some_lowrank(0).scale
    for got, sent in zip(pieces(delta), pieces(some_lowrank(0)), strict=True):
        assert float((got - sent).abs().max()) <= float(sent.abs().max()) / 127


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"lora::x/A": torch.zeros(1)}, {}),
        ({"facts/x": torch.zeros(1)}, {}),
        ({"/x": torch.zeros(1)}, {}),
        ({"a/\ud800": torch.zeros(1)}, {}),
        ({"a/" + "x" * (5 << 20): torch.zeros(1)}, {}),
        ({"a/x": torch.zeros(1, dtype=torch.int64)}, {}),
        ({"a/x": torch.zeros(1, dtype=torch.complex64)}, {}),
        ({}, {"x": None}),
        ({}, {"x": float("nan")}),
        ({}, {"x": [float("inf")]}),
        ({}, {"x": 2**63}),
        ({}, {"x": {1: 2}}),
        ({}, {1: 2}),
        ({}, {"x": (1, 2)}),
        ({}, {"x": "\ud800"}),
        ({}, {"x": torch.zeros(1)}),
        ({}, {"x": [[[[[[1]]]]]]}),
        ({}, {"x": "y" * (5 << 20)}),
        ({}, {"x": [[]] * 200_000}),
    ],
)
def test_what_a_receiver_would_refuse_for_its_form_is_not_sent(tensors: Any, facts: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor|fact"):
        encode(HEADER, tensors, facts, Identity())


@pytest.mark.parametrize(
    "field",
    [
        {"weight": float("nan")},
        {"weight": -1.0},
        {"weight": True},
        {"round": -1},
        {"round": 1.0},
        {"direction": "sideways"},
        {"client": 3},
        {"kind": "\udfff"},
        {"method": "x" * 300},
    ],
)
def test_a_header_holds_only_what_can_be_true(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        replace(HEADER, **field)
