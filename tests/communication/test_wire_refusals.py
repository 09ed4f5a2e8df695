"""What is no message, or not the one expected, is refused with a reason; nothing else ever comes of it."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.codecs import CODECS
from weft.communication.wire import Expected, Header, Refused, Value, decode, encode
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank

A, B, BIAS, BASE, FREE = "lora/q/A", "lora/q/B", "head/x/bias", "base/q", "prototype/1"
SHAPES: dict[str, tuple[int | None, ...] | None] = {
    A: (2, 3),
    B: (4, 2),
    BIAS: (5,),
    BASE: (4, 3),
    FREE: None,
}
HEADER = Header("fedit", 3, "train", "up", "client-1", 12)
EXPECTED = Expected(
    "fedit",
    3,
    "train",
    "up",
    SHAPES,
    required=frozenset({A}),
    facts=frozenset({"counts", "seed"}),
    max_bytes=1 << 16,
    max_weight=100,
)
FACTS = {"seed": 2**62, "counts": {"a": [1, 2.5, True, "é"]}}
NAMES_OF_CODECS = ["identity", "quant8"]


def some_tensors() -> dict[str, Value]:
    delta = LowRank(torch.ones(4, 6), torch.arange(18.0).reshape(6, 3), 0.3)
    return {A: torch.arange(6.0).reshape(2, 3), B: torch.ones(4, 2), BIAS: torch.arange(5.0), BASE: delta}


def some_reference() -> dict[str, Tensor]:
    return {A: torch.ones(2, 3), B: torch.ones(4, 2) / 3, BIAS: torch.ones(5)}


def bytes_of(tensors: dict[str, Value], codec: str = "identity", reference: dict[str, Tensor] | None = None) -> bytes:
    reference = some_reference() if reference is None else reference
    return encode(HEADER, tensors, FACTS, CODECS[codec](), reference=reference, generator=generator(0)).data


def some_bytes(codec: str = "identity") -> bytes:
    return bytes_of(some_tensors(), codec)


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors, read by the format's description and not by the code under test."""
    magic, version, length = struct.unpack("<4sHI", data[:10])
    assert (magic, version) == (b"WEFT", 1)
    return json.loads(data[10 : 10 + length]), data[10 + length :]


def put_together(header: dict[str, Any] | str | bytes, tensors: bytes) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<4sHI", b"WEFT", 1, len(raw)) + raw + tensors


def only(*entries: tuple[str, str, int, int]) -> bytes:
    """A message with a table made by hand: name, shape and bytes of float32 tensors in 24 bytes of data."""
    form = '"%s":{"dtype":"F32","shape":%s,"data_offsets":[%d,%d]}'
    table = ("{" + ",".join(form % entry for entry in entries) + "}").encode()
    header = taken_apart(some_bytes())[0] | {"marks": "f" * len(entries), "scales": {}}
    return put_together(header, struct.pack("<Q", len(table)) + table + b"\0" * 24)


def reason(data: bytes, expected: Expected = EXPECTED, reference: dict[str, Tensor] | None = None) -> str:
    with pytest.raises(Refused) as caught:
        decode(data, expected, reference=reference)
    text = str(caught.value)
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 400
    return text


# ---- bytes from anyone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", NAMES_OF_CODECS)
def test_a_message_cut_short_anywhere_or_longer_than_it_says_is_refused(codec: str) -> None:
    data = some_bytes(codec)
    decode(data, EXPECTED, reference=some_reference())
    for end in range(len(data)):
        reason(data[:end], reference=some_reference())
    reason(data + b"\0", reference=some_reference())


def check_harmless(data: bytes) -> None:
    """Either a sentence, or tensors and facts that are all they should be."""
    try:
        received = decode(data, EXPECTED, reference=some_reference())
    except Refused:
        reason(data, reference=some_reference())
        return
    assert A in received.tensors
    for name, value in received.tensors.items():
        assert SHAPES[name] in (None, tuple(value.shape))
        for tensor in (value.A, value.B) if isinstance(value, LowRank) else (value,):
            assert tensor.is_floating_point()
            assert bool(tensor.isfinite().all())
    assert 0 <= received.header.weight <= 100
    assert set(received.facts) <= {"counts", "seed"}
    json.dumps(received.facts, allow_nan=False).encode()


@pytest.mark.parametrize("codec", NAMES_OF_CODECS)
@settings(max_examples=200)
@given(data=st.data())
def test_flipped_dropped_repeated_and_foreign_bytes_do_no_harm(codec: str, data: st.DataObject) -> None:
    raw = bytearray(some_bytes(codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        until = data.draw(st.integers(at, min(len(raw) - 1, at + 40)))
        kind = data.draw(st.sampled_from(["flip", "drop", "repeat", "foreign"]))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "drop":
            del raw[at:until]
        elif kind == "repeat":
            raw[at:at] = raw[at:until]
        else:
            raw[at:until] = data.draw(st.binary(max_size=until - at))
    check_harmless(bytes(raw))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_at_all_are_refused(noise: bytes, preamble: bool) -> None:
    reason(struct.pack("<4sHI", b"WEFT", 1, len(noise)) + noise if preamble else noise)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=5,
) | st.sampled_from([2**62, 1e308, "identity", "quant8", "FFFFFF", "fffff", "bhdfF"])


@pytest.mark.parametrize("codec", NAMES_OF_CODECS)
@settings(max_examples=200)
@given(data=st.data())
def test_a_well_formed_header_that_says_anything_else_does_no_harm(codec: str, data: st.DataObject) -> None:
    header, tensors = taken_apart(some_bytes(codec))
    for key in data.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=3)):
        if isinstance(header[key], dict) and header[key] and data.draw(st.booleans()):
            header[key] |= {data.draw(st.sampled_from([*header[key], FREE])): data.draw(anything)}
        else:
            header[key] = data.draw(anything)
    check_harmless(put_together(header, tensors))


@pytest.mark.parametrize("codec", NAMES_OF_CODECS)
@settings(max_examples=200)
@given(data=st.data())
def test_a_well_formed_table_of_tensors_that_says_anything_else_does_no_harm(codec: str, data: st.DataObject) -> None:
    header, tensors = taken_apart(some_bytes(codec))
    (length,) = struct.unpack_from("<Q", tensors)
    table = json.loads(tensors[8 : 8 + length])
    number = st.sampled_from([0, 1, 2, 3, 5, 24, 2**31, 2**62, 2**63, 2**64 - 1, -1, 0.5, "2"])
    dtypes = st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "U8", "BOOL", "I64", "F4", "F8_E8M0", "", None])
    fields = {
        "dtype": dtypes,
        "shape": st.lists(number, max_size=3),
        "data_offsets": st.lists(number, max_size=3),
    }
    for name in data.draw(st.lists(st.sampled_from([*table, FREE]), min_size=1, max_size=2)):
        change = data.draw(st.fixed_dictionaries({}, optional=fields) | anything)
        whole = name not in table or not isinstance(change, dict) or not isinstance(table[name], dict)
        table[name] = change if whole else table[name] | change
    raw = json.dumps(table).encode()
    check_harmless(put_together(header, struct.pack("<Q", len(raw)) + raw + tensors[8 + length :]))


def test_the_largest_size_is_checked_before_anything_is_read() -> None:
    assert "at most 65536" in reason(b"\0" * ((1 << 16) + 1))
    data = some_bytes()
    decode(data, replace(EXPECTED, max_bytes=len(data)))
    assert "at most" in reason(data, replace(EXPECTED, max_bytes=len(data) - 1))


def test_huge_claims_cost_neither_time_nor_memory() -> None:
    header, tensors = taken_apart(some_bytes())
    a, end = (A, "[2,3]", 0, 24), 24
    assert A in decode(only(a), EXPECTED).tensors
    hostile = [
        struct.pack("<4sHI", b"WEFT", 1, 2**32 - 1) + b"{}",
        put_together(header, struct.pack("<Q", 2**64 - 1) + b"{}"),
        put_together(header, struct.pack("<Q", 2**40) + b"{}"),
        put_together(b"[" * 60_000, tensors),
        put_together(b'{"a":' * 60_000, tensors),
        put_together(b'{"a":' + b"9" * 60_000 + b"}", tensors),
        put_together(b'{"a":[' + b"[]," * (1 << 20) + b"[]]}", tensors),
        put_together(b'{"a":[' + b"1.5," * (1 << 19) + b"1]}", tensors),
        only((A, "[4611686018427387904,4]", 0, 24)),
        only((A, "[1099511627776]", 0, 2**42)),
        only((A, "[-6]", 0, 24)),
        only((A, "[2,3]", 8, 32)),
        only(a, (FREE, "[1000000000000000000,0]", end, end)),
        only(a, (FREE, "[0,9223372036854775807]", end, end)),
        only(a, (FREE, "[0,9223372036854775808]", end, end)),
    ]
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    reasons = [reason(data, replace(EXPECTED, max_bytes=1 << 23)) for data in hostile]
    assert "claims 4294967295 bytes where 2 are left" in reasons[0]
    assert "claims 18446744073709551615 bytes where 2 are left" in reasons[1]
    assert "lists and objects" in reasons[6]
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kB


def test_pickled_bytes_are_never_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    attack = pickle.dumps(Attack())
    header, tensors = taken_apart(some_bytes())
    for data in (attack, put_together(attack, tensors), put_together(header, attack)):
        reason(data)
    assert not list(tmp_path.iterdir())
    pickle.loads(attack)
    assert list(tmp_path.iterdir())  # it would have worked


def test_a_reason_carries_no_more_of_a_strangers_text_than_a_line() -> None:
    header, tensors = taken_apart(some_bytes())
    evil = "\n\x1b[31mroot logged in\u202e" * 10
    for change in ({"facts": {evil: 1}}, {"codec": evil}, {"kind": evil}, {evil: 1}, {"scales": {evil: 1.0}}):
        reason(put_together(header | change, tensors))
    reason(put_together(header | {"marks": "f", "scales": {}}, safetensors.torch.save({evil: torch.zeros(1)})))


# ---- messages that are not right ---------------------------------------------------------------------------


def test_a_key_given_twice_is_refused_in_the_header_and_among_the_tensors() -> None:
    header, tensors = taken_apart(some_bytes())
    text = json.dumps(header)
    assert "twice" in reason(put_together('{"weight": 1, ' + text[1:], tensors))
    assert "twice" in reason(put_together(text.replace('"seed"', '"counts"'), tensors))
    assert "twice" in reason(only((A, "[2,3]", 0, 24), (A, "[2,3]", 0, 24)))


@pytest.mark.parametrize("codec", NAMES_OF_CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [BIAS, BASE])
def test_one_element_that_is_not_finite_is_refused(codec: str, bad: float, name: str) -> None:
    tensors = some_tensors()
    value = tensors[name]
    (value.A if isinstance(value, LowRank) else value).view(-1)[1] = bad
    assert "finite" in reason(bytes_of(tensors, codec), reference=some_reference())


def test_a_difference_that_leads_out_of_range_is_refused() -> None:
    held = torch.full((2, 3), 6e4, dtype=torch.float16)
    moved = taken_apart(bytes_of({A: torch.zeros_like(held)}, "quant8", {A: -held}))
    unmoved = taken_apart(bytes_of({A: held}, "quant8", {A: held}))
    data = put_together(moved[0] | {"base": unmoved[0]["base"]}, moved[1])
    assert "finite" in reason(data, reference={A: held})


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", v) for v in ("NaN", "Infinity", "-Infinity", "1e999", "-1", "101", "true", '"1"', "null")]
    + [("seed", v) for v in ("NaN", "1e999", "null", "9223372036854775808", "[[[[[[1]]]]]]", '"\\ud800"', "[NaN]")]
    + [
        ("seed", '{"\\udc00": 1}'),
        ("round", "3.0"),
        ("round", "true"),
        ("base/q", "1e999"),
        ("base/q", '"1"'),
    ],
)
def test_a_number_or_fact_that_cannot_be_is_refused(key: str, value: str) -> None:
    header, tensors = taken_apart(some_bytes())
    was = json.dumps(header | header["facts"] | header["scales"])
    text = json.dumps(header).replace(f'"{key}": {json.dumps(json.loads(was)[key])}', f'"{key}": {value}')
    assert text != json.dumps(header)
    reason(put_together(text, tensors))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"method": "flora"}, "method"),
        ({"round": 2}, "round"),
        ({"kind": "probe"}, "kind"),
        ({"direction": "down"}, "direction"),
        ({"client": "client-2"}, "client"),
        ({"max_weight": 11.5}, "weight"),
        ({"facts": frozenset({"seed"})}, "counts"),
        ({"required": frozenset({FREE})}, "missing"),
        ({"tensors": {A: (2, 3), B: (4, 2), BASE: (4, 3)}}, "not expected"),
        ({"tensors": SHAPES | {A: (3, 2)}}, "shape"),
        ({"tensors": SHAPES | {A: (6,)}}, "shape"),
        ({"tensors": SHAPES | {A: (None, 4)}}, "shape"),
        ({"tensors": SHAPES | {BASE: (4, 4)}}, "shape"),
        ({"lowrank": frozenset()}, "factored"),
        ({"lowrank": frozenset({BASE, A})}, "not factored"),
    ],
)
def test_a_message_that_is_not_the_one_expected_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    data = some_bytes()
    decode(data, replace(EXPECTED, client="client-1", lowrank=frozenset({BASE})))
    assert says in reason(data, replace(EXPECTED, **wrong))


@pytest.mark.parametrize("left_open", [{A: (None, 3)}, {A: (None, None)}, {A: None}, {BASE: None}])
def test_a_dimension_or_shape_left_open_may_have_any_size(left_open: dict[str, Any]) -> None:
    assert decode(some_bytes(), replace(EXPECTED, tensors=SHAPES | left_open)).tensors.keys() == some_tensors().keys()


def test_a_difference_needs_the_very_values_it_was_taken_from() -> None:
    data = some_bytes("quant8")
    held = some_reference()
    decode(data, EXPECTED, reference=held)
    assert "not held here" in reason(data)
    assert "not held here" in reason(data, reference=held | {BIAS: held[BIAS].double()})
    nudged = torch.nextafter(held[BIAS], torch.tensor(9.0))
    assert "other values" in reason(data, reference=held | {BIAS: nudged})
    header, tensors = taken_apart(data)
    marks = header["marks"]
    for wrong in (marks.lower(), marks.upper(), marks[1:], marks + "f", "x" * len(marks)):
        reason(put_together(header | {"marks": wrong}, tensors), reference=held)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint16, torch.float8_e5m2])
def test_a_dtype_the_codec_does_not_write_is_refused(dtype: torch.dtype) -> None:
    header = taken_apart(some_bytes())[0] | {"marks": "f", "scales": {}}
    tensors = safetensors.torch.save({A: torch.ones(2, 3).to(dtype)})
    text = reason(put_together(header, tensors))
    assert "not floating point" in text or "not allowed" in text


def test_a_factored_value_is_two_factors_of_one_dtype_and_nothing_beside() -> None:
    header = taken_apart(some_bytes())[0] | {"scales": {BASE: 1.0}}
    free = replace(EXPECTED, required=frozenset())
    left, right = torch.ones(4, 2), torch.ones(2, 3)

    def message(marks: str, **tensors: Tensor) -> bytes:
        named = {{"b": f"{BASE}::B", "a": f"{BASE}::A", "whole": BASE}[key]: t for key, t in tensors.items()}
        return put_together(header | {"marks": marks}, safetensors.torch.save(named))

    assert BASE in decode(message("ff", b=left, a=right), free).tensors
    assert "two dtypes" in reason(message("dh", b=left, a=right), free)
    assert "twice" in reason(message("fff", b=left, a=right, whole=torch.ones(4, 3)), free)
    for wrong in ({"b": left}, {"a": right}, {"b": left.mT, "a": right.mT}, {"b": left, "a": right[0]}):
        assert "factors" in reason(message("f" * len(wrong), **{k: t.contiguous() for k, t in wrong.items()}), free)


@pytest.mark.parametrize("json_but_no_object", ["[]", "3", "null", '"x"', '{"a": NaN}', '{"a": -Infinity}'])
def test_only_an_object_of_strict_json_is_a_header_or_a_table(json_but_no_object: str) -> None:
    header, tensors = taken_apart(some_bytes())
    assert "header is not" in reason(put_together(json_but_no_object, tensors))
    table = json_but_no_object.encode()
    assert "table of tensors is not" in reason(put_together(header, struct.pack("<Q", len(table)) + table + b"\0" * 8))


def test_another_format_version_or_codec_is_refused_by_name() -> None:
    data = some_bytes()
    assert "not a Weft message" in reason(b"WEFD" + data[4:])
    assert "version 2" in reason(data[:4] + b"\2\0" + data[6:])
    header, tensors = taken_apart(data)
    assert '"quant9"' in reason(put_together(header | {"codec": "quant9"}, tensors))
