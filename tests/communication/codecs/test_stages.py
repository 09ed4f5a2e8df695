"""Each stage against its paper's formula, in NumPy and plain Python that share no code with it."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.codecs import bits, codec
from weft.tensors.keyed import generator

Floats = npt.NDArray[np.float64]


def vector(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=generator(seed, "x"))


def once(text: str, x: Tensor, seed: int = 0) -> tuple[dict[str, Tensor], Floats]:
    """The wire tensors, and what arrives."""
    which = codec(text)
    wire, meta = which.encode({"a": x.clone()}, generator(seed, "own"), common=generator(seed, "common"))
    which.shapes(wire, meta)
    return wire, which.decode(wire, meta)["a"].double().numpy()


def above(values: Floats) -> Floats:
    """The least float32 that is not below."""
    near = values.astype(np.float32)
    return np.where(near < values, np.nextafter(near, np.float32(np.inf)), near).astype(np.float64)


def in_bits(numbers: list[int], width: int) -> bytes:
    text = "".join(format(n, f"0{width}b") for n in numbers)
    return bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))


# bits ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.data())
def test_numbers_lie_one_behind_the_other_in_as_many_bits(width: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    raw = bits.pack(np.array(numbers, np.int64), width)
    assert raw.tobytes() == in_bits(numbers, width)
    assert bits.unpack(raw, len(numbers), width).tolist() == numbers


@pytest.mark.parametrize("width", [1, 3, 7, 8, 16])
def test_many_numbers_lie_alike(width: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**width, (1 << 18) + 13)
    raw = bits.pack(numbers, width)
    assert len(raw) == -(-len(numbers) * width // 8)
    assert np.array_equal(bits.unpack(raw, len(numbers), width), numbers)


def test_what_lies_behind_the_last_number_is_refused() -> None:
    with pytest.raises(ValueError, match="behind"):
        bits.unpack(np.array([0b10100001], np.uint8), 2, 3)


# quantisers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize(("levels", "bucket", "n"), [(7, 10, 37), (1, 512, 37), (15, 1, 5), (127, 8, 16), (32767, 20, 50)])
def test_qsgd_draws_one_of_the_two_levels_around_each_magnitude(norm: str, levels: int, bucket: int, n: int) -> None:
    x = vector(n)
    wire, found = once(f"qsgd:levels={levels},bucket={bucket},norm={norm}", x)
    size = min(bucket, n)
    rows = -(-n // size)
    uniform = torch.rand(rows, size, generator=generator(0, "own"), dtype=torch.float64).numpy()
    codes, norms = [], []
    for i, v in enumerate(np.array_split(x.double().numpy(), range(size, n, size))):
        N = above(np.array(np.abs(v).max() if norm == "max" else math.sqrt(sum(v**2))))
        norms.append(np.float32(N))
        for j, value in enumerate(v):
            y = levels * abs(value) / N
            level = math.floor(y) + (uniform[i, j] < y - math.floor(y))
            codes.append(int(math.copysign(level, value)) + levels)
            assert found[i * size + j] == pytest.approx(N * math.copysign(level, value) / levels, rel=1e-6)
    assert wire["a::norm"].tolist() == norms
    assert wire["a"].numpy().tobytes() == in_bits(codes, 1 + math.ceil(math.log2(levels + 1)))


def test_qsgd_is_symmetric_and_scales_with_what_it_quantises() -> None:
    x = vector(100)
    one, minus, twice = (once("qsgd", v)[1] for v in (x, -x, 2 * x))
    assert np.array_equal(minus, -one)
    assert np.array_equal(twice, 2 * one)
    assert (once("qsgd:levels=1,bucket=4096,norm=l2", vector(4096))[1] != 0).sum() <= 1 * (1 + 64) * 1.2  # s (s + √n)


def books() -> dict[str, list[float]]:
    quantile = NormalDist().inv_cdf
    delta = (1 / 30 + 1 / 32) / 2
    # QLoRA, appendix E, to six places
    nf4 = [-1.0, -0.696193, -0.525073, -0.394917, -0.284441, -0.184773, -0.091050, 0.0]
    nf4 += [0.079580, 0.160930, 0.246112, 0.337915, 0.440710, 0.562617, 0.722956, 1.0]
    assert nf4[8] == pytest.approx(quantile(0.5 + (0.5 - delta) / 8) / quantile(1 - delta), abs=1e-6)
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    fp4 = sorted({sign * m / 6 for sign in (-1, 1) for m in magnitudes})
    return {"block8": [i / 127 for i in range(-127, 128)], "nf4": nf4, "fp4": fp4}


@pytest.mark.parametrize("name", ["block8", "nf4", "fp4"])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_block_is_its_largest_magnitude_and_the_nearest_value_of_the_book_for_each_entry(name: str, block: int) -> None:
    x = vector(50)
    wire, found = once(f"{name}:block={block}", x)
    book = np.array(books()[name])
    for at in range(0, 50, block):
        v = x[at : at + block].double().numpy()
        scale = np.abs(v).max()
        assert wire["a::scale"][at // block].item() == scale
        nearest = [book[np.abs(book - value / scale).argmin()] for value in v]
        assert found[at : at + block] == pytest.approx(np.array(nearest) * scale, abs=2e-6 * scale)
    largest = [at + int(x[at : at + block].abs().argmax()) for at in range(0, 50, block)]
    assert [found[i] for i in largest] == [x[i].item() for i in largest]


def test_code_books_have_as_many_values_as_their_bits_and_exactly_one_zero() -> None:
    for name, count in (("block8", 255), ("nf4", 16), ("fp4", 15)):
        book = codec(name).book  # type: ignore[attr-defined]
        assert len(book) == count
        assert int((book == 0).sum()) == 1
        assert book.tolist() == pytest.approx(books()[name], abs=1e-6)
        assert bool((book.diff() > 0).all())


@pytest.mark.parametrize(("kind", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("power", [1e-9, 1.0, 1e9])
def test_half_keeps_its_significant_bits_at_every_magnitude(kind: str, dtype: torch.dtype, power: float) -> None:
    x = vector(500) * power
    wire, found = once(f"half:format={kind}", x)
    assert wire["a"].dtype == dtype
    assert math.frexp(wire["a::scale"].item())[0] == 0.5  # a power of two
    assert 2**14 <= float(wire["a"].float().abs().max()) <= 2**15
    precision = {"fp16": 2**-11, "bf16": 2**-8}[kind]
    assert np.all(np.abs(found - x.double().numpy()) <= precision * np.abs(x.double().numpy()) + 1e-9 * power)


def test_half_says_the_largest_number_of_float32_without_leaving_its_range() -> None:
    most = torch.finfo(torch.float32).max
    for kind in ("fp16", "bf16"):
        assert once(f"half:format={kind}", torch.tensor([most, -most, 1.0]))[1][:2].tolist() == [most, -most]


def test_sign_is_the_mean_magnitude_with_the_sign_of_each_entry() -> None:
    x = torch.tensor([3.0, -1.0, 0.5, -0.5, 0.0])
    wire, found = once("sign", x)
    assert found.tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    assert wire["a"].tolist() == [0b01010000]


@pytest.mark.parametrize("weight", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("shift", [0.0, 0.3, 10.0, -10.0])
def test_nnadq_gives_the_nearest_of_the_levels_that_the_range_is_worth(weight: float, shift: float) -> None:
    x = vector(80) + shift
    wire, found = once(f"nnadq:weight={weight}", x)
    exact = x.double().numpy()
    low, high = exact.min(), exact.max()
    N = high - low
    best = min(range(1, 70_000), key=lambda s: weight * math.log2(s) / 32 + N / s**2)
    assert best == pytest.approx(math.sqrt(N * 32 * math.log(4) / weight), abs=1)  # the minimiser that its rule rests on
    L = 2 ** math.ceil(math.log2(math.ceil(max(1.0, math.sqrt(N * 32 * math.log(4) / weight))))) - 1
    assert wire["a::range"].tolist() == [low, high]
    assert np.abs(found - exact).max() <= N / (2 * L) * (1 + 1e-9) + 1e-6
    grid = found / (N / L) if low <= 0 <= high else (found - low) / (N / L)
    inner = (found > low + N / L) & (found < high - N / L)
    assert inner.any()
    assert np.abs(grid - np.round(grid))[inner].max() < 1e-3
    again = once(f"nnadq:weight={weight}", torch.from_numpy(found).float())[1]
    assert again == pytest.approx(found, abs=1e-6)


def test_nnadq_says_a_constant_exactly_and_a_range_of_which_two_levels_suffice() -> None:
    assert once("nnadq", torch.full((9,), 0.1))[1].tolist() == [np.float32(0.1)] * 9
    assert once("nnadq", torch.full((9,), -7.0))[1].tolist() == [-7.0] * 9
    wire, found = once("nnadq", torch.tensor([0.0, 1e-6, 0.6e-6]))
    assert len(wire["a"]) == 1
    assert found == pytest.approx([0.0, 1e-6, 1e-6])


UNLIKE = {"a/still": vector(64) * 1e-3, "b/moved": vector(64, 1), "c/wide": vector(640, 2) * 0.3, "d/zero": torch.zeros(64)}
ONE_FITS = {"a/small": vector(100) * 1.5, "b/large": vector(300, 1)}
"""A bit more of all entries of the larger one takes more error away, and one of the smaller more for each bit."""
ON_LEVELS = {"a/between": torch.tensor([1.0] + [1 / 6] * 63), "b/on": torch.tensor([1.0] + [1 / 3] * 63)}
"""With a bit more, entries of one lie half-way between two levels, and those of the other on one, though they have lain worse."""
NEAR_LEVELS = {"a/near": torch.tensor([1.0] + [0.95] * 63), "b/on": torch.tensor([1.0] + [1 / 3] * 63)}
"""What is nearly always rounded up is seldom far off."""


@pytest.mark.parametrize(
    ("tensors", "each", "order"),
    [
        (UNLIKE, 4, ["a/still", "d/zero", "c/wide", "b/moved"]),
        (ONE_FITS, 2.75, ["b/large", "a/small"]),
        (ON_LEVELS, 2.5, ["a/between", "b/on"]),
        (NEAR_LEVELS, 2.5, ["a/near", "b/on"]),
    ],
    ids=["unlike", "one fits", "on levels", "near levels"],
)
def test_adaptive_spends_the_next_bit_where_it_takes_most_of_the_error_away(
    tensors: dict[str, Tensor], each: float, order: list[str]
) -> None:
    wire, _ = codec(f"adaptive:bits={each}").encode({n: x.clone() for n, x in tensors.items()}, generator(0))
    chosen = {n: int(wire[n + "::bits"]) for n in tensors}

    def error(x: Floats, b: int) -> float:
        s, total = 2 ** (b - 1) - 1, 0.0
        for at in range(0, len(x), 512):
            v = np.abs(x[at : at + 512])
            N = v.max()
            y = s * v / N if N else v
            total += (N / s) ** 2 * float(((y - np.floor(y)) * (1 - y + np.floor(y))).sum())
        return total

    values = {n: x.double().numpy() for n, x in tensors.items()}
    left, wanted = math.floor((each - 2) * sum(map(len, values.values()))), dict.fromkeys(values, 2)
    while True:
        fit = {n: x for n, x in values.items() if len(x) <= left and wanted[n] < 12}
        gains = {n: (error(x, wanted[n]) - error(x, wanted[n] + 1)) / len(x) for n, x in fit.items()}
        best = max(gains, key=lambda n: gains[n], default=None)
        if best is None or gains[best] <= 0:
            break
        wanted[best], left = wanted[best] + 1, left - len(values[best])
    assert chosen == wanted
    assert sorted(chosen, key=lambda n: chosen[n]) == order
    assert chosen[order[0]] == 2 < chosen[order[-1]]


@pytest.mark.parametrize("text", ["nnadq", "half", "half:format=bf16"])
def test_the_largest_float32_stays_finite_where_its_level_lies_beyond(text: str) -> None:
    largest = torch.finfo(torch.float32).max
    found = once(text, torch.tensor([largest, -largest, 1.0]))[1]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:2], [largest, -largest], rtol=1e-2)


@pytest.mark.parametrize("text", ["half", "half:format=bf16"])
def test_half_says_the_least_numbers_of_float32_by_a_scale_that_float32_has(text: str) -> None:
    x = torch.tensor([2.0**-147, -(2.0**-149)])
    assert once(text, x)[1].any()


def test_adaptive_gives_no_entry_more_than_twelve_bits() -> None:
    """However many are left over where there is nothing else to spend them on."""
    wire, _ = codec("adaptive:bits=12").encode({"a/moved": vector(64), "b/zero": torch.zeros(64)}, generator(0))
    assert (int(wire["a/moved::bits"]), int(wire["b/zero::bits"])) == (12, 2)


def test_a_level_above_the_highest_is_refused() -> None:
    """15 levels take 4 bits, in which there are 16 numbers."""
    which = codec("qsgd:levels=7")
    wire, meta = which.encode({"a": torch.ones(4)}, generator(0))
    assert wire["a"].tolist() == [0b1110_1110] * 2
    wire["a"][1] = 0b1111_1110
    with pytest.raises(ValueError, match="has a level that is none"):
        which.decode(wire, meta)


def test_adaptive_loses_less_than_the_same_bits_for_everybody() -> None:
    tensors = {f"a/{i}": vector(300, i) * 4.0**-i for i in range(6)}

    def error(text: str) -> float:
        which = codec(text)
        found = which.decode(*which.encode({n: x.clone() for n, x in tensors.items()}, generator(0)))
        return sum(float((found[n] - x).square().sum()) for n, x in tensors.items())

    assert error("adaptive:bits=4") < 0.2 * error("qsgd:levels=7")


# sparsifiers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "n"), [(0.01, 1000), (0.01, 30), (0.2, 40), (0.9, 33), (1.0, 10)])
def test_topk_keeps_the_largest_and_their_places(share: float, n: int) -> None:
    x = vector(n)
    wire, found = once(f"topk:share={share}", x)
    k = max(round(share * n), 1)
    exact = x.double().numpy()
    kept = sorted(np.argsort(-np.abs(exact), kind="stable")[:k])
    wanted = np.zeros(n)
    wanted[kept] = exact[kept]
    assert np.array_equal(found, wanted)
    assert wire["a"].double().tolist() == exact[kept].tolist()
    if k == n:
        assert set(wire) == {"a"}
        return
    numbers, mask = in_bits(kept, math.ceil(math.log2(n))), in_bits([int(i in kept) for i in range(n)], 1)
    assert wire["a::at"].numpy().tobytes() == (mask if len(mask) <= len(numbers) else numbers)


@pytest.mark.parametrize("places", [[3, 3, 5, 7], [3, 5, 4, 7], [3, 5, 7, 40]], ids=["twice", "disordered", "beyond"])
def test_places_that_are_not_different_ones_in_their_order_are_refused(places: list[int]) -> None:
    which = codec("topk:share=0.1")
    wire, meta = which.encode({"a": vector(40)}, None)
    assert wire["a::at"].numel() == 3
    for said, right in (([3, 5, 7, 39], True), (places, False)):
        wire["a::at"] = torch.from_numpy(bits.pack(np.array(said), 6))
        if right:
            assert which.decode(wire, meta)["a"].nonzero().flatten().tolist() == said
            continue
        with pytest.raises(ValueError, match="has places that are not 4 different ones in their order"):
            which.decode(wire, meta)


def test_topk_takes_the_first_of_equal_ones() -> None:
    found = once("topk:share=0.4", torch.tensor([1.0, -2.0, 2.0, -1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))[1]
    assert found.tolist() == [1.0, -2.0, 2.0, -1.0, *[0.0] * 6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_without_a_quantiser_entries_go_in_their_own_dtype(dtype: torch.dtype) -> None:
    x = vector(50).to(dtype)
    for text, gain in (("topk:share=0.2", 1), ("randk:share=0.2", 5)):
        wire, found = once(text, x)
        assert wire["a"].dtype == dtype
        kept = found != 0
        assert kept.sum() == 10
        assert np.array_equal(found[kept], gain * x.double().numpy()[kept])


def test_randk_takes_every_entry_as_often_as_every_other() -> None:
    which = codec("randk:share=0.25")
    draws = 4000
    wire, meta = which.encode({f"a/{i}": torch.ones(20) for i in range(draws)}, generator(0))
    kept = torch.stack(list(which.decode(wire, meta).values())).numpy() > 0
    assert set(kept.sum(1)) == {5}
    assert np.abs(kept.mean(0) - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / draws)
    together = (kept[:, 0] & kept[:, 1]).mean()
    assert together == pytest.approx(0.25 * 4 / 19, abs=5 * math.sqrt(0.05 / draws))
