"""Whatever a stranger writes in a codec's name: refused with a sentence, or tensors that are all they should be; soon, in little
memory."""

from __future__ import annotations

import functools
import json
import resource
import time
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codec_texts import TEXTS
from patience import patience
from raw_messages import apart, junk, numbers, whole
from weft.communication.codecs import codec
from weft.communication.wire import Expected, Header, Refused, decode, encode
from weft.tensors.keyed import generator

SHAPES: dict[str, tuple[int | None, ...] | None] = {
    "a/x": (6, 9),
    "a/y": (5,),
    "b/free": None,
    "b/rows": (None, 3),
    "c/none": (0,),
}
HEADER = Header("fedit", 0, "train", "up", "c", 1)
EXPECTED = Expected("fedit", 0, "train", "up", SHAPES, max_bytes=1 << 20, max_weight=10)
LOSSY = [text for text in TEXTS if text != "identity"]
often = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def held() -> dict[str, Tensor]:
    return {"a/x": torch.ones(6, 9), "a/y": torch.zeros(5), "c/none": torch.zeros(0)}


@functools.cache
def honest(text: str) -> bytes:
    draw = generator(0, "x")
    shapes = {"a/x": (6, 9), "a/y": (5,), "b/free": (4, 7), "b/rows": (2, 3), "c/none": (0,)}
    tensors = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    return encode(HEADER, tensors, {}, codec(text), reference=held(), generator=generator(1), common=generator(2)).data


def check(data: bytes) -> bool:
    """Whether it was taken; if so, it is all that it should be."""
    try:
        found = decode(data, EXPECTED, reference=held()).tensors
    except Refused as refusal:
        text = str(refusal)
        assert text.isprintable()
        assert len(text) < 500
        return False
    for name, value in found.items():
        wanted = SHAPES[name]
        assert isinstance(value, Tensor)
        assert wanted is None or len(wanted) == value.dim()
        assert all(w in (None, d) for w, d in zip(wanted or value.shape, value.shape, strict=True))
        assert bool(value.isfinite().all())
    return True


@pytest.mark.parametrize("text", TEXTS)
def test_an_honest_message_is_taken(text: str) -> None:
    assert check(honest(text))
    assert check(whole(*apart(honest(text))))


@pytest.mark.parametrize("text", TEXTS)
def test_a_message_cut_short_anywhere_is_refused(text: str) -> None:
    data = honest(text)
    assert not any(check(data[:end]) for end in range(0, len(data), 7))


@pytest.mark.parametrize("text", TEXTS)
@often
@given(data=st.data())
def test_flipped_dropped_and_foreign_bytes_do_no_harm(text: str, data: st.DataObject) -> None:
    raw = bytearray(honest(text))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "drop", "insert", "set"]))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "drop":
            del raw[at : at + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(max_size=20))
        else:
            raw[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\1\0\0\0"]))
        if not raw:
            return
    check(bytes(raw))


@pytest.mark.parametrize("text", LOSSY)
@often
@given(data=st.data())
def test_well_formed_headers_and_tables_that_say_anything_else_do_no_harm(text: str, data: st.DataObject) -> None:
    header, table, raw = apart(honest(text))
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["meta", "shape", "whole", "codec", "rename", "entry", "body"]))
        meta = header["meta"] if isinstance(header["meta"], dict) else {}
        if kind == "meta":
            key = data.draw(st.sampled_from([*meta, "shapes", "seed", "x"]))
            header["meta"] = {**meta, key: data.draw(junk)}
        elif kind == "shape" and isinstance(meta.get("shapes"), list) and meta["shapes"]:
            i = data.draw(st.integers(0, len(meta["shapes"]) - 1))
            meta["shapes"][i] = data.draw(st.lists(numbers, max_size=4))
        elif kind == "whole" and "whole" in meta:
            meta["whole"] = data.draw(st.lists(st.integers(-1, 6), max_size=6))
        elif kind == "codec":
            header["codec"] = codec(data.draw(st.sampled_from(TEXTS))).text
        elif kind == "rename" and table:
            old = data.draw(st.sampled_from(sorted(table)))
            table[data.draw(st.sampled_from([*SHAPES, "a/x::norm", "a/x::at", "a/y::bits", "::scale", "a::B"]))] = table.pop(old)
        elif kind == "entry" and table:
            entry = table[data.draw(st.sampled_from(sorted(table)))]
            if isinstance(entry, dict):
                entry["dtype"] = data.draw(st.sampled_from(["U8", "I8", "F32", "F16", "BF16", "F64", "BOOL", "I64"]))
                entry["shape"] = data.draw(st.just(entry["shape"]) | st.lists(numbers, max_size=3))
        else:
            raw = data.draw(st.binary(max_size=len(raw))).ljust(len(raw), b"\xff")
    check(whole(header, table, raw))


@pytest.mark.parametrize("text", LOSSY)
@often
@given(data=st.data())
def test_a_codec_raises_nothing_but_value_errors_whatever_its_wire_tensors_are(text: str, data: st.DataObject) -> None:
    """Without the message around it, which refuses much before a codec sees it."""
    which = codec(text)
    header, _, _ = apart(honest(text))
    length = int.from_bytes(honest(text)[6:10], "little")
    wire, meta = safetensors.torch.load(honest(text)[10 + length :]), header["meta"]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(wire))) if wire else "a/x"
        x = wire.get(name, torch.zeros(1))
        kind = data.draw(st.sampled_from(["numbers", "shape", "dtype", "drop", "more", "meta"]))
        if kind == "numbers" and x.numel():
            filled = data.draw(st.sampled_from([0, 1, -1, 127, -128, 255, 1e30, float("nan"), float("inf"), -float("inf")]))
            if x.is_floating_point() or abs(filled) < 1000:
                at = data.draw(st.integers(0, x.numel() - 1))
                flat = x.reshape(-1).clone()
                flat[at] = torch.tensor(filled).to(x.dtype)
                wire[name] = flat.reshape(x.shape)
        elif kind == "shape":
            size = data.draw(st.integers(0, 70))
            wire[name] = data.draw(
                st.sampled_from([x.new_zeros(size), x.new_ones(size), x.reshape(1, -1), x.new_ones(()), x.reshape(-1)[1:]])
            )
        elif kind == "dtype":
            dtypes = [
                torch.uint8,
                torch.int8,
                torch.float32,
                torch.float16,
                torch.float64,
                torch.bool,
                torch.int64,
                torch.bfloat16,
            ]
            wire[name] = x.nan_to_num(0, 0, 0).to(data.draw(st.sampled_from(dtypes)))
        elif kind == "drop":
            wire.pop(name, None)
        elif kind == "more":
            wire[data.draw(st.sampled_from(["x", "a/x::scale", "a/x::norm", "a/x::at", "a/x::bits", "a/x::range", "::", ""]))] = x
        else:
            key = data.draw(st.sampled_from(["shapes", "whole", "seed", "x"]))
            meta = {**meta, key: data.draw(junk | st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=5))}
    try:
        shapes = which.shapes(wire, meta)
        if sum(map(_elements, shapes.values())) > 10_000:
            return  # a message of such shapes would have been refused by now
        found = which.decode(wire, meta)
    except ValueError:
        return
    assert {n: tuple(x.shape) for n, x in found.items()} == shapes


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# claims -------------------------------------------------------------------------------------------------------------------


def message(text: str, shapes: list[list[int]], wire: dict[str, Tensor], **meta: Any) -> bytes:
    names = sorted({n.split("::")[0] for n in wire})
    header = json.loads(json.dumps(apart(honest("quant8"))[0]))
    about = ({"shapes": shapes} if shapes else {}) | meta
    header |= {"codec": codec(text).text, "meta": about, "marks": "f" * len(names), "base": ""}
    body = safetensors.torch.save(wire)
    length = int.from_bytes(body[:8], "little")
    return whole(header, json.loads(body[8 : 8 + length]), body[8 + length :])


BYTES = torch.zeros(100, dtype=torch.uint8)
SCALE = torch.ones(())
CLAIMS = {
    "all entries left out": lambda n: message("randk:share=1e-12", [[n]], {"b/free": torch.ones(1)}, whole=[], seed=1),
    "a few places of very many": lambda n: message(
        "topk:share=1e-12", [[n]], {"b/free": torch.ones(1), "b/free::at": BYTES[: -(-(n - 1).bit_length() // 8)]}, whole=[]
    ),
    "equal levels": lambda n: message(
        "quant8+entropy", [[n]], {"b/free": torch.tensor([1, 3], dtype=torch.uint8), "b/free::scale": SCALE}
    ),
    "rows of equal levels": lambda n: message(
        "quant8+entropy", [[n, 3]], {"b/rows": torch.tensor([1, 3], dtype=torch.uint8), "b/rows::scale": SCALE}
    ),
    "bits": lambda n: message("sign", [[n]], {"b/free": BYTES, "b/free::scale": SCALE}),
    "norms": lambda n: message("qsgd:levels=1,bucket=1048576", [[n]], {"b/free": BYTES, "b/free::norm": torch.ones(1)}),
    "an empty dimension beside a huge one": lambda n: message("sign", [[n, 0]], {"b/free": BYTES[:0], "b/free::scale": SCALE}),
    "many dimensions": lambda n: message("sign", [[2] * 60], {"b/free": BYTES, "b/free::scale": SCALE}),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_a_few_bytes_that_claim_a_huge_tensor_cost_neither_time_nor_memory(what: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for n in (2**19, 2**30, 2**40, 2**62, 2**63, 10**30):
        if n < EXPECTED.max_bytes and "empty" in what:
            continue  # there is nothing in it, and the dimension is not beyond reason
        with pytest.raises(Refused):
            decode(CLAIMS[what](min(n, 2**62) if "places" in what else n), EXPECTED)
    assert time.monotonic() - start < patience(5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_claims_of_as_many_entries_as_there_are_bits_are_taken() -> None:
    """The refusals above would prove nothing if such messages were never taken."""
    assert decode(message("sign", [[800]], {"b/free": BYTES, "b/free::scale": SCALE}), EXPECTED).tensors["b/free"].shape == (800,)
    entropy = {"b/free": torch.tensor([1, 3], dtype=torch.uint8), "b/free::scale": SCALE}
    assert decode(message("quant8+entropy", [[40]], entropy), EXPECTED).tensors["b/free"].shape == (40,)
    randk = message("randk:share=0.01", [[200]], {"b/free": torch.ones(2)}, whole=[], seed=1)
    assert int((decode(randk, EXPECTED).tensors["b/free"] != 0).sum()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "qsgd",  # not all settings
        "qsgd:levels=7,bucket=512",
        "qsgd:bucket=512,levels=7,norm=max",
        "qsgd:levels=07,bucket=512,norm=max",
        "qsgd:levels=0,bucket=512,norm=max",
        "qsgd:levels=7,bucket=99999999999,norm=max",
        "qsgd:levels=7,bucket=512,norm=max+entropy+entropy",
        "entropy+qsgd:levels=7,bucket=512,norm=max",
        "entropy",
        " quant8",
        "quant8+",
        "quant8:",
        "topk:share=1e-2",
        "topk:share=nan",
        "topk:share=1e999",
        "chain",
        "exact",
        "+" * 200,
        "quant8+" * 100_000,
        "qsgd:" + "levels=7," * 100_000,
        "randk:share=0.1,common=True",
    ],
)
def test_a_text_that_is_not_one_that_is_written_is_refused(text: str) -> None:
    header, table, raw = apart(honest("quant8"))
    start = time.monotonic()
    with pytest.raises(Refused, match=r"^There is no codec \".*\" here\.$"):
        decode(whole(header | {"codec": text}, table, raw), EXPECTED, reference=held())
    assert time.monotonic() - start < patience(2)
