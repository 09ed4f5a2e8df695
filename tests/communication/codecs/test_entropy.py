"""The entropy coder: nothing is lost, it is near the bound, and reads nothing but what it writes."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patience import patience
from weft.communication.codecs import Entropy, codec, entropy, rans
from weft.communication.codecs.laid import Codes, Packed
from weft.tensors.keyed import generator

Ints = npt.NDArray[np.int64]


def coded(numbers: Ints, alphabet: int, whole: bool = False) -> torch.Tensor:
    (raw,) = Entropy().pack([Codes(torch.from_numpy(numbers), alphabet, whole)])
    return raw


def read(raw: torch.Tensor, n: int, alphabet: int) -> Ints:
    packed = Packed("a", raw, n, alphabet)
    Entropy().check(packed)
    (found,) = list(Entropy().unpack([packed]))
    return found.numpy().astype(np.int64)


def bound(numbers: Ints) -> float:
    """Bytes that the frequencies of the numbers allow."""
    counts = np.unique(numbers, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def fixed(n: int, alphabet: int) -> int:
    return -(-n * max((alphabet - 1).bit_length(), 1) // 8)


def normal(n: int, levels: int, spread: float, seed: int = 0) -> Ints:
    draw = np.random.default_rng(seed).normal(0, spread, n)
    return np.clip(np.round(draw), -levels, levels).astype(np.int64) + levels


@settings(max_examples=300)
@given(st.data())
def test_any_numbers_come_back_and_cost_at_most_a_byte_more_than_at_fixed_width(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from([1, 2, 3, 15, 255, 256, 4095, 65536]))
    kind = data.draw(st.sampled_from(["any", "few", "skewed", "one"]))
    n = data.draw(st.integers(0, 3000) if kind != "any" else st.integers(0, 40))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    if kind == "any":
        numbers = np.array(data.draw(st.lists(st.integers(0, alphabet - 1), min_size=n, max_size=n)), np.int64)
    elif kind == "few":
        numbers = draw.choice(draw.integers(0, alphabet, 3), n)
    elif kind == "skewed":
        numbers = np.minimum(draw.geometric(0.9, n) - 1, alphabet - 1)
    else:
        numbers = np.full(n, draw.integers(0, alphabet))
    whole = data.draw(st.booleans())
    raw = coded(numbers, alphabet, whole)
    assert np.array_equal(read(raw, n, alphabet), numbers)
    assert len(raw) <= fixed(n, alphabet) + 1
    if whole:
        assert 8 * len(raw) >= n


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from([0.01, 0.3, 1.0, 5.0])), max_size=6))
def test_tensors_of_one_message_are_coded_side_by_side_and_as_they_are_alone(which: list[tuple[int, float]]) -> None:
    all = [normal(n, 7, spread, i) for i, (n, spread) in enumerate(which)]
    together = Entropy().pack([Codes(torch.from_numpy(numbers), 15) for numbers in all])
    for numbers, raw in zip(all, together, strict=True):
        assert torch.equal(raw, coded(numbers, 15))
    packed = [Packed(f"a/{i}", raw, len(numbers), 15) for i, (numbers, raw) in enumerate(zip(all, together, strict=True))]
    for numbers, found in zip(all, Entropy().unpack(packed), strict=True):
        assert np.array_equal(found.numpy(), numbers)


def test_very_many_tensors_are_coded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    all = [Codes(torch.from_numpy(normal(200 + 40 * i, 7, 1.0, i)), 15) for i in range(9)]
    together = Entropy().pack(all)
    monkeypatch.setattr(rans, "AT_ONCE", 2)
    assert all_equal(Entropy().pack(all), together)
    packed = [Packed(f"a/{i}", raw, len(codes.numbers), 15) for i, (codes, raw) in enumerate(zip(all, together, strict=True))]
    assert all_equal(list(Entropy().unpack(packed)), [codes.numbers for codes in all])


def all_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(bool((x == y).all()) and len(x) == len(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("n", [10_000, 10_001, 65_537, 300_000])
@pytest.mark.parametrize(
    ("alphabet", "spread"), [(15, 3.0), (15, 1.0), (3, 0.6), (255, 40.0), (255, 12.0), (65, 10.0), (3, 0.4), (31, 0.5)]
)
def test_it_is_within_five_percent_of_the_entropy_with_all_that_it_says_beside(n: int, alphabet: int, spread: float) -> None:
    numbers = normal(n, alphabet // 2, spread)
    assert bound(numbers) > n / 16
    raw = coded(numbers, alphabet)
    assert bound(numbers) < len(raw) <= 1.05 * bound(numbers)
    assert np.array_equal(read(raw, n, alphabet), numbers)


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5])
def test_numbers_that_are_nearly_always_the_same_cost_a_fraction_of_a_bit(share: float) -> None:
    n = 100_000
    draw = np.random.default_rng(0)
    numbers = np.where(draw.random(n) < share, 7, draw.integers(0, 15, n))
    assert len(coded(numbers, 15)) <= 1.05 * bound(numbers)
    assert np.array_equal(read(coded(numbers, 15), n, 15), numbers)


def test_many_levels_that_hardly_occur_leave_room_for_those_that_do() -> None:
    draw = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(4096), draw.integers(0, 2000, 300_000), draw.integers(4090, 4096, 9)])
    assert len(coded(numbers, 4096)) < 0.97 * fixed(len(numbers), 4096)
    assert np.array_equal(read(coded(numbers, 4096), len(numbers), 4096), numbers)


def test_uniform_numbers_lie_at_fixed_width_and_equal_ones_in_three_bytes() -> None:
    numbers = np.random.default_rng(0).integers(0, 256, 10_000)
    assert len(coded(numbers, 256)) == 10_001
    assert coded(np.full(10**6, 3), 15).tolist() == [1, 3]
    assert coded(np.full(10**6, 300), 65535).tolist() == [1, 300 & 127 | 128, 300 >> 7]
    assert len(coded(np.full(8000, 3), 15, whole=True)) == 4001


def test_a_million_levels_take_a_few_seconds_at_most() -> None:
    numbers = normal(1_000_000, 7, 2.0)
    start = time.monotonic()
    assert np.array_equal(read(coded(numbers, 15), len(numbers), 15), numbers)
    assert time.monotonic() - start < patience(10)


@pytest.mark.parametrize("text", ["qsgd+entropy", "quant8+entropy", "nnadq:weight=0.1+entropy", "topk:share=0.2+fp4+entropy"])
def test_what_arrives_is_what_arrives_without_it(text: str) -> None:
    tensors = {"a/x": torch.randn(70, 90, generator=generator(0)), "a/y": torch.zeros(50), "b/z": torch.randn(3)}
    found = []
    for which in (codec(text), codec(text.removesuffix("+entropy"))):
        wire, meta = which.encode({n: x.clone() for n, x in tensors.items()}, generator(1))
        found.append((which.decode(wire, meta), sum(t.numel() * t.element_size() for t in wire.values())))
    assert all(torch.equal(found[0][0][n], found[1][0][n]) for n in tensors)
    assert found[0][1] < 0.95 * found[1][1]


# from a stranger ----------------------------------------------------------------------------------------------------------


RAW = coded(normal(5000, 7, 2.0), 15).numpy()


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def head(lanes: int = 1, low: int = 0, weights: int = 2, table: bytes = b"\x04\x10", states: bytes = b"\0\0\1\0") -> bytes:
    """Of a stream of two numbers that are as frequent as one another."""
    return b"\2" + varint(lanes) + varint(low) + varint(weights) + table + states


def test_a_stream_made_by_hand_is_read() -> None:
    """Two numbers of equal weights: each has half of 2^14, so that a step doubles the state."""
    numbers = [0, 1, 1, 0, 1]
    x = 1 << 16
    for number in reversed(numbers):
        x = (x // 8192 << 14) + x % 8192 + 8192 * number
    assert x < 1 << 32
    assert read(torch.frombuffer(bytearray(head(states=x.to_bytes(4, "little"))), dtype=torch.uint8), 5, 15).tolist() == numbers


@pytest.mark.parametrize(
    ("raw", "n", "alphabet"),
    [
        (b"", 4, 15),
        (b"\0", 0, 15),
        (b"\3abc", 4, 15),
        (b"\xff", 4, 15),
        (b"\0ab", 5, 15),
        (b"\0abc", 4, 15),
        (b"\0\xff\xff", 4, 15),  # a level of 15
        (b"\0ab\1", 5, 15),
        (b"\1", 4, 15),
        (b"\1\x0f", 4, 15),
        (b"\1\3\3", 4, 15),
        (b"\1\x83\0", 4, 15),  # 3 in two bytes
        (b"\1\x83\x83\x83\x83\x83\x83\x83", 4, 15),
        (b"\2", 4, 15),
        (b"\2\1\0", 4, 15),
        (head()[:-1], 4, 15),
        (head() + b"x", 4, 15),
        (head(lanes=0, states=b""), 4, 15),
        (head(lanes=5, states=b"\0\0\1\0" * 5), 4, 15),
        (head(lanes=2**30), 2**31, 15),
        (head(lanes=1), 8193, 15),
        (head(low=14), 4, 15),
        (head(low=2**31), 4, 15),
        (head(weights=0, table=b""), 4, 15),
        (head(weights=2**31), 4, 15),
        (head(weights=5000, table=bytes(3750)), 4, 65536),
        (head(table=b"\0\0"), 4, 15),  # nothing occurs
        (head(table=b"\x04\x11"), 4, 15),  # something behind the table
        (head(states=b"\xff\xff\0\0"), 4, 15),
        (head(states=b"\1\0\1\0"), 4, 15),  # ends in another state than it began
        (head() + b"ab", 4, 15),  # a word that nobody takes
        (head(states=b"\0\0\0\xf0"), 4, 15),  # lacks a word
    ],
)
def test_other_bytes_are_refused(raw: bytes, n: int, alphabet: int) -> None:
    with pytest.raises(ValueError, match=r"tensor|levels|behind"):
        read(torch.tensor(list(raw), dtype=torch.uint8), n, alphabet)


def test_a_stream_of_levels_above_the_highest_is_refused() -> None:
    """However well it is coded: 15 of 16 levels, read as those of an alphabet of 15."""
    numbers = normal(5000, 7, 2.0) + 1
    raw = coded(numbers, 16)
    assert (int(raw[0]), int(numbers.max())) == (2, 15)
    assert np.array_equal(read(raw, 5000, 16), numbers)
    with pytest.raises(ValueError, match="its table has levels that are none"):
        read(raw, 5000, 15)


def test_a_lane_longer_than_the_longest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lanes take a step together: one of very many numbers would take as many steps by itself."""
    numbers = normal(9000, 7, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(entropy, "_LONGEST", 1 << 20)
        patch.setattr(entropy, "_USUAL", 1 << 20)
        raw = coded(numbers, 15)
        assert np.array_equal(read(raw, 9000, 15), numbers)
    with pytest.raises(ValueError, match="too few or too many lanes"):
        read(raw, 9000, 15)


def test_a_word_behind_a_whole_stream_is_refused() -> None:
    assert len(read(torch.from_numpy(RAW), 5000, 15)) == 5000
    for more in (b"\0\0", b"ab"):
        with pytest.raises(ValueError, match="not what an entropy coder writes"):
            read(torch.tensor(list(RAW.tobytes() + more), dtype=torch.uint8), 5000, 15)


@settings(max_examples=200)
@given(st.data())
def test_bent_bytes_are_refused_or_levels(data: st.DataObject) -> None:
    raw = bytearray(RAW.tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(raw) - 1, data.draw(st.sampled_from([3, 40, 10**6])))))
        kind = data.draw(st.sampled_from(["flip", "set", "drop", "insert", "cut"]))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "drop":
            del raw[at : at + data.draw(st.integers(1, 9))]
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(max_size=9))
        else:
            del raw[at:]
        if not raw:
            break
    try:
        found = read(torch.tensor(list(raw), dtype=torch.uint8), 5000, 15)
    except ValueError:
        return
    assert len(found) == 5000
    assert found.min() >= 0
    assert found.max() < 15


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 3), st.integers(0, 200), st.sampled_from([1, 2, 15, 255, 65536]))
def test_any_bytes_at_all_are_refused_or_levels(noise: bytes, mode: int, n: int, alphabet: int) -> None:
    raw: Any = torch.tensor([mode, *noise], dtype=torch.uint8)
    try:
        found = read(raw, n, alphabet)
    except ValueError:
        return
    assert len(found) == n
    assert n == 0 or 0 <= found.min() <= found.max() < alphabet


def test_a_claim_of_very_many_levels_is_checked_without_making_them() -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for raw in (b"\0" + bytes(100), head(), head(lanes=2**31 - 1), b"\1\3"):
        packed = Packed("a", torch.tensor(list(raw), dtype=torch.uint8), 2**40, 15)
        try:
            Entropy().check(packed)
        except ValueError:
            assert raw[0] != 1
    assert time.monotonic() - start < patience(5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
