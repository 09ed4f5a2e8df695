"""Whole numbers below a bound: in as few bits as that asks for, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.storage.notes import Notes
from weft.tensors import forms
from weft.tensors.integers import LARGEST, Integers, packed_size, unpacked, width


def by_hand(values: list[int], below: int) -> bytes:
    """Bits one after the other, the lowest first, in a text."""
    text = "".join(format(v, f"0{width(below)}b")[::-1] for v in values) if below > 1 else ""
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))


@given(st.integers(1, LARGEST), st.data())
def test_bits_are_those_by_hand_and_come_back(below: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, below - 1), max_size=20))
    made = Integers(torch.tensor(values, dtype=torch.int64), below)
    assert made.packed().numpy().tobytes() == by_hand(values, below)
    assert torch.equal(unpacked(made.packed(), (len(values),), below).values, made.values)
    assert packed_size((len(values),), below) == made.packed().numel()


@pytest.mark.parametrize(("below", "bits"), [(1, 0), (2, 1), (3, 2), (256, 8), (257, 9), (50265, 16), (LARGEST, 62)])
def test_an_integer_takes_the_bits_that_its_bound_asks_for(below: int, bits: int) -> None:
    assert width(below) == bits
    assert packed_size((5, 3), below) == -(-15 * bits // 8)


def test_shapes_come_back_empty_ones_too() -> None:
    for shape in ((), (0,), (2, 0, 3), (2, 3, 5)):
        values = torch.randint(0, 7, shape)
        assert torch.equal(unpacked(Integers(values, 7).packed(), shape, 7).values, values)


@pytest.mark.parametrize(
    ("values", "below"),
    [
        (torch.tensor([3]), 3),
        (torch.tensor([-1]), 3),
        (torch.tensor([0.0]), 3),
        (torch.tensor([0]), 0),
        (torch.tensor([0]), LARGEST + 1),
    ],
)
def test_what_is_out_of_bounds_is_no_value(values: list[float], below: int) -> None:
    with pytest.raises(ValueError, match=r"bound|int64|from 0 to"):
        Integers(torch.tensor(values), below)


@pytest.mark.parametrize(
    ("bits", "shape", "below"),
    [
        ([0b11], (1,), 3),  # 3 is not below 3
        ([0b100], (1,), 3),  # a bit too many
        ([0, 0], (1,), 3),
        ([], (1,), 3),
        ([0], (-1,), 3),
        ([0], (1,), -1),
    ],
)
def test_other_bytes_are_refused(bits: list[int], shape: tuple[int, ...], below: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpacked(torch.tensor(bits, dtype=torch.uint8), shape, below)


def test_they_are_values_like_others_in_files() -> None:
    values: dict[str, forms.Value] = {"ids": Integers(torch.tensor([[3, 1], [0, 4]]), 5), "w": torch.ones(2)}
    notes = Notes()
    notes.put("a", values | {"n": 3})
    found = notes.get("a")
    assert found["n"] == 3
    assert torch.equal(found["ids"].values, torch.tensor([[3, 1], [0, 4]]))
    assert found["ids"].below == 5
    assert torch.equal(found["w"], torch.ones(2))
