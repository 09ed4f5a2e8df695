"""What holds of every codec and every chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codec_texts import TEXTS
from weft.communication.codecs import Codec, codec
from weft.communication.wire import Expected, Header, Refused, decode, encode
from weft.tensors.keyed import generator

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HEADER = Header("fedit", 0, "train", "up", "c")
LOSSY = [text for text in TEXTS if text != "identity"]
ROUGH = ("sign", "topk:share=0.3+sign+entropy")  # no room for zero
SPARSE = [text for text in TEXTS if text.startswith(("topk", "randk"))]


def streams(seed: int = 0) -> dict[str, torch.Generator]:
    return {"generator": generator(seed, "own"), "common": generator(seed, "common")}


def sent(which: Codec, tensors: dict[str, Tensor], seed: int = 0, **more: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return which.encode({n: x.clone() for n, x in tensors.items()}, **streams(seed), **more)


def through(text: str, tensors: dict[str, Tensor], seed: int = 0, **more: Any) -> dict[str, Tensor]:
    """Tensors written down and read again."""
    which = codec(text)
    wire, meta = sent(which, tensors, seed, **more)
    assert which.shapes(wire, meta) == {n: tuple(x.shape) for n, x in tensors.items()}
    return which.decode(wire, meta)


def some(dtype: torch.dtype = torch.float32, power: float = 1.0) -> dict[str, Tensor]:
    """Tensors of many shapes and magnitudes."""
    draw = generator(1, "values")
    shapes = {"a/big": (40, 33), "a/one": (1,), "b/scalar": (), "b/none": (0, 4), "b/row": (7,), "c/cube": (2, 3, 5)}
    return {
        n: (torch.randn(s, generator=draw, dtype=torch.float64) * power ** (i % 3)).to(dtype)
        for i, (n, s) in enumerate(shapes.items())
    }


@st.composite
def float32s(draw: st.DrawFn) -> Tensor:
    """Any finite float32 numbers, subnormal and huge ones included, in any shape."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    count = int(np.prod(shape))
    values = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("text", [text for text in TEXTS if "norm=l2" not in text])  # a 2-norm may pass float32's range
@settings(max_examples=40)
@given(x=float32s())
def test_names_and_shapes_are_kept_and_numbers_finite(text: str, x: Tensor) -> None:
    y = through(text, {"a/x": x})["a/x"]
    assert y.shape == x.shape
    assert y.is_floating_point()
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS)
def test_every_dtype_and_shape_goes_through(text: str, dtype: torch.dtype) -> None:
    tensors = some(dtype)
    found = through(text, tensors)
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].shape == x.shape
        assert bool(found[name].isfinite().all())
        if x.numel() == 1:  # nothing to lose: the scale says it
            assert torch.allclose(found[name].double(), x.double(), rtol=2e-3 if "half" in text else 1e-6, atol=0), name


@pytest.mark.parametrize("text", TEXTS)
def test_equal_tensors_and_streams_give_equal_bytes_in_whatever_order_they_come(text: str) -> None:
    tensors = some()
    which = codec(text)
    one, about = sent(which, tensors)
    for other in (tensors, dict(reversed(tensors.items()))):
        again, said = sent(which, other)
        assert said == about
        assert again.keys() == one.keys()
        assert all(torch.equal(again[n], one[n]) and again[n].dtype == one[n].dtype for n in one)


@pytest.mark.parametrize("text", [t for t in TEXTS if any(s in t for s in ("quant8", "qsgd", "adaptive", "randk"))])
def test_another_stream_gives_other_bytes_and_none_is_an_error(text: str) -> None:
    which = codec(text)
    one, about = sent(which, some())
    other, said = sent(which, some(), seed=1)
    assert said != about or any(not torch.equal(one[n], other[n]) for n in one)
    with pytest.raises(ValueError, match="generator"):
        which.encode(some(), None)


@pytest.mark.parametrize("power", [1e-30, 1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("text", LOSSY)
def test_the_error_is_of_the_size_of_the_tensor_however_small_or_large_that_is(text: str, power: float) -> None:
    x = torch.randn(64, generator=generator(0, "x"), dtype=torch.float64)
    one, other = (through(text, {"a/x": v})["a/x"].double() for v in (x, x * power))
    assert bool(other.any())
    if "nnadq" not in text:  # whose levels depend on the size by design
        assert torch.allclose(other / power, one, rtol=0, atol=2e-2 * float(x.abs().max()))
    else:
        assert float((other / power - x).abs().max()) <= float(x.max() - x.min())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_tensor_of_zeros_arrives_as_zeros_and_a_zero_as_zero(text: str, dtype: torch.dtype) -> None:
    x = torch.randn(9, 40, generator=generator(0, "x")).to(dtype)
    x[::2] = 0
    found = through(text, {"a/x": torch.zeros(9, 40, dtype=dtype), "b/x": x})
    assert not found["a/x"].any()
    if text not in ROUGH:
        assert not found["b/x"][::2].any()


@pytest.mark.parametrize("text", SPARSE)
def test_a_tensor_that_is_no_difference_keeps_all_its_entries(text: str) -> None:
    """To leave an entry of it out would say that it is zero."""
    x = torch.full((4, 25), 3.0)
    thin, whole = (through(text, {"a/x": x, "b/x": x}, whole=names) for names in ((), ("a/x",)))
    assert int((thin["a/x"] == 0).sum()) == int((whole["b/x"] == 0).sum()) > 0
    assert torch.allclose(whole["a/x"].double(), x.double(), rtol=0.02)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_difference_takes_at_least_a_bit_an_entry(text: str) -> None:
    """Else a receiver could not tell an honest message from one that claims a tensor of any size."""
    x = torch.zeros(4096)
    wire, _ = sent(codec(text), {"a/x": x}, whole=("a/x",))
    assert 8 * sum(t.numel() * t.element_size() for t in wire.values()) >= x.numel()


# what is not finite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["difference", "value"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", TEXTS)
def test_one_entry_that_is_not_finite_is_refused_wherever_it_is(text: str, bad: float, held: bool) -> None:
    expected = Expected("fedit", 0, "train", "up", {"a/x": (31,), "a/y": (3,)}, max_weight=1)
    reference = {"a/x": torch.ones(31), "a/y": torch.ones(3)} if held else {}
    for at in (0, 13, 30):
        x = torch.randn(31, generator=generator(0, "x"))
        x[at] = bad
        tensors = {"a/x": x, "a/y": torch.ones(3)}
        data = encode(HEADER, tensors, {}, codec(text), reference=reference, **streams()).data
        with pytest.raises(Refused, match="finite"):
            decode(data, expected, reference=reference)


# through a message --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_message_says_the_codec_with_all_its_settings_and_is_read_by_them(text: str, dtype: torch.dtype) -> None:
    tensors = some(dtype)
    held = {n: torch.zeros_like(x) for n, x in tensors.items() if n != "c/cube"}
    held["a/one"] = tensors["a/one"].clone()  # it did not move
    expected = Expected("fedit", 0, "train", "up", {n: tuple(x.shape) for n, x in tensors.items()}, max_weight=1)
    frame = encode(HEADER, tensors, {}, codec(text), reference=held, **streams())
    assert f'"codec":"{codec(text).text}"'.encode() in frame.data
    found = decode(frame.data, expected, reference=held).tensors
    direct = through(
        text,
        {
            n: x.to(torch.promote_types(dtype, torch.float32)) - held[n].float() if n in held and codec(text).differences else x
            for n, x in tensors.items()
        },
        whole=("c/cube",),
    )
    for name, x in tensors.items():
        y = found[name]
        assert isinstance(y, Tensor)
        assert y.dtype == dtype
        assert torch.equal(y, x if name == "a/one" else direct[name].to(dtype)), name


@pytest.mark.parametrize("text", TEXTS)
def test_the_payload_is_the_bytes_of_the_wire_tensors_by_part(text: str) -> None:
    tensors = some()
    held = {n: torch.zeros_like(x) for n, x in tensors.items()}
    frame = encode(HEADER, tensors, {}, codec(text), reference=held, **streams())
    wire, _ = sent(codec(text), tensors)
    sizes = {p: sum(t.numel() * t.element_size() for n, t in wire.items() if n[0] == p) for p in "abc"}
    assert frame.payload == sizes | {"facts": 0}
    length = int.from_bytes(frame.data[6:10], "little")
    table = int.from_bytes(frame.data[10 + length : 18 + length], "little")
    assert sum(sizes.values()) == len(frame.data) - 18 - length - table
