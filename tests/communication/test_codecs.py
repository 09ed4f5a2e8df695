"""What holds of every codec, and of the 8-bit quantiser in particular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.codecs import CODECS, Identity, Quant8, codec, register
from weft.communication.wire import Expected, Header, Refused, decode, encode
from weft.errors import UserError
from weft.tensors.keyed import generator

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EXPECTED = Expected("fedit", 0, "train", "up", {"a/x": (3,)}, max_weight=1)


def through(name: str, x: Tensor, seed: int = 0) -> Tensor:
    """``x`` written down and read again."""
    which = codec(name)
    wire, meta = which.encode({"a/x": x.clone()}, generator(seed, "rounding"))
    assert which.shapes(wire, meta) == {"a/x": tuple(x.shape)}
    return which.decode(wire, meta)["a/x"]


@st.composite
def float32s(draw: st.DrawFn) -> Tensor:
    """Any finite float32 numbers, subnormal and huge ones included, in any shape."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    count = int(np.prod(shape))
    values = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("name", sorted(CODECS))
@given(x=float32s())
def test_every_codec_keeps_names_and_shapes_and_returns_finite_floats(name: str, x: Tensor) -> None:
    y = through(name, x)
    assert y.shape == x.shape
    assert y.is_floating_point()
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_changes_no_bit_of_any_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1 / 3, torch.finfo(dtype).tiny / 2, torch.finfo(dtype).max], dtype=dtype)
    y = through("identity", x)
    assert y.dtype == dtype
    assert torch.equal(y.view(torch.uint8), x.view(torch.uint8))


@given(float32s())
def test_quant8_gives_one_of_the_two_levels_around_each_element(x: Tensor) -> None:
    y = through("quant8", x).double().numpy()
    exact = x.double().numpy()
    step = np.abs(exact).max(initial=0.0) / 127
    rounding = np.finfo(np.float32).eps * np.abs(exact).max(initial=0.0) + np.finfo(np.float32).smallest_subnormal
    assert np.all(np.abs(y - exact) <= step + rounding)
    if step:
        levels = y / step
        tolerance = rounding / step
        assert np.all(np.abs(levels - np.round(levels)) <= tolerance)
    assert np.all(y[exact == 0] == 0)
    largest = np.abs(exact) == np.abs(exact).max(initial=0.0)
    assert np.array_equal(y[largest], exact[largest])


@pytest.mark.parametrize("dtype", DTYPES)
def test_quant8_is_right_on_average(dtype: torch.dtype) -> None:
    """A level is one of two, with known odds: so is the standard error of its mean over many streams."""
    draws = 4000
    x = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([3.0])]).to(dtype)
    stream = generator(0, "unbiased")
    wire, meta = Quant8().encode({f"a/{i}": x for i in range(draws)}, stream)
    decoded = torch.stack(list(Quant8().decode(wire, meta).values())).double().numpy()
    exact = x.double().numpy()
    step = np.abs(exact).max() / 127
    upper = exact / step - np.floor(exact / step)
    error = step * np.sqrt(upper * (1 - upper) / draws)
    random = error > 1e-3 * step / np.sqrt(draws)
    z = (decoded.mean(0) - exact)[random] / error[random]
    assert random.sum() > 30
    assert np.abs(z).max() < 4.5
    assert np.abs(z.sum() / np.sqrt(len(z))) < 4.5  # a small bias of all elements in one direction adds up here
    assert decoded.var(0).max() <= (step / 2) ** 2 * (1 + 1e-9)


def test_quant8_rounds_independently_from_element_to_element_and_from_stream_to_stream() -> None:
    x = torch.cat([torch.full((10_000,), 0.5 / 127), torch.ones(1)])
    one, other = through("quant8", x, seed=1)[:-1], through("quant8", x, seed=2)[:-1]
    up = torch.stack([one, other]) > 0.75 / 127
    assert torch.equal(one, through("quant8", x, seed=1)[:-1])
    for a, b in ((up[0], up[1]), (up[0, 1:], up[0, :-1])):
        agreement = float((a == b).double().mean())
        assert abs(agreement - 0.5) < 5 * 0.5 / 100  # five standard errors of 10,000 fair coins


@given(float32s(), st.integers(1, 20))
def test_quant8_scales_with_what_it_quantises(x: Tensor, power: int) -> None:
    x = torch.where((x.abs() > 1e-30) & (x.abs() < 1e30), x, 0)  # away from the ends of float32
    assert torch.equal(through("quant8", x * 2**power), through("quant8", x) * 2**power)


def test_quant8_never_rounds_its_scale_below_the_largest_element() -> None:
    """Else a level of 128 could be drawn, which a signed byte turns into -128."""
    for largest in (1 + 1e-12, 1 / 3, 0.1, 1e-50, 3e38):
        wire, _ = Quant8().encode({"a/x": torch.tensor([-largest, 0.0], dtype=torch.float64)}, generator(0))
        assert wire["a/x::scale"].dtype == torch.float32
        assert largest <= wire["a/x::scale"].item() <= largest * (1 + 2e-7) + 2e-45


def test_quant8_costs_a_byte_per_element_and_four_per_tensor() -> None:
    shapes = {"lora/a": (3, 5), "lora/b": (), "head/c": (0, 4)}
    frame = encode(
        Header("fedit", 0, "train", "up", "c"),
        {name: torch.ones(shape) for name, shape in shapes.items()},
        {},
        Quant8(),
        generator=generator(0),
    )
    assert frame.payload == {"lora": 15 + 4 + 1 + 4, "head": 4, "facts": 0}


def test_quant8_without_a_stream_is_an_error_not_a_hidden_global_one() -> None:
    with pytest.raises(ValueError, match="generator"):
        Quant8().encode({"a/x": torch.ones(1)}, None)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_quant8_refuses_a_scale_that_is_none(scale: float) -> None:
    wire = {"a/x": torch.ones(3, dtype=torch.int8), "a/x::scale": torch.tensor(scale)}
    with pytest.raises(ValueError, match="scale"):
        Quant8().shapes(wire, {})


LEVELS, SCALE = torch.ones(3, dtype=torch.int8), torch.tensor(1.0)


@pytest.mark.parametrize(
    ("wire", "meta"),
    [
        ({"a/x": LEVELS}, {}),
        ({"a/x::scale": SCALE}, {}),
        ({"a/x": LEVELS, "a/y::scale": SCALE}, {}),
        ({"a/x": LEVELS.float(), "a/x::scale": SCALE}, {}),
        ({"a/x": LEVELS, "a/x::scale": SCALE.double()}, {}),
        ({"a/x": LEVELS, "a/x::scale": torch.ones(3)}, {}),
        ({"a/x": LEVELS, "a/x::scale": SCALE}, {"bits": 4}),
    ],
)
def test_quant8_refuses_what_it_does_not_write(wire: dict[str, Tensor], meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scale|levels|settings"):
        Quant8().shapes(wire, meta)


def test_quant8_refuses_the_one_level_it_never_writes() -> None:
    with pytest.raises(ValueError, match="level"):
        Quant8().decode({"a/x": torch.tensor([1, -128], dtype=torch.int8), "a/x::scale": SCALE}, {})


def test_identity_refuses_settings_and_integers() -> None:
    with pytest.raises(ValueError, match="settings"):
        Identity().shapes({}, {"bits": 4})
    with pytest.raises(ValueError, match="floating"):
        Identity().shapes({"a/x": LEVELS}, {})


def test_an_unknown_codec_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r'no codec "quant9".*identity, quant8.*mean "quant8"'):
        codec("quant9")


def test_a_name_is_registered_once_and_its_codec_found_by_it() -> None:
    class Mine(Identity):
        name = "mine"

    try:
        assert register(Mine) is Mine
        assert type(codec("mine")) is Mine
        with pytest.raises(ValueError, match="mine"):
            register(Mine)
    finally:
        del CODECS["mine"]


def test_a_codec_that_fails_or_gives_what_it_did_not_announce_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Announcing(Identity):
        name = "announcing"

        def decode(self, wire: Any, meta: Any) -> Any:
            return {name: tensor.new_zeros(9) for name, tensor in wire.items()}

    class Failing(Identity):
        name = "failing"

        def decode(self, wire: Any, meta: Any) -> Any:
            raise ZeroDivisionError("line one\nline two")

    for which, says in ((Announcing(), "announced"), (Failing(), "line one")):
        monkeypatch.setitem(CODECS, which.name, type(which))
        data = encode(Header("fedit", 0, "train", "up", "c"), {"a/x": torch.ones(3)}, {}, which).data
        with pytest.raises(Refused, match=says):
            decode(data, EXPECTED)
