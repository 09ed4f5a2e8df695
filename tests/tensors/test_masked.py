"""Some entries of a tensor: their places in the fewest bytes, and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.storage.notes import Notes
from weft.tensors import forms
from weft.tensors.masked import Masked, mask_of


@given(st.lists(st.integers(0, 6), max_size=3), st.floats(0, 1), st.integers(0, 2**31))
def test_places_come_back_and_take_the_fewest_bytes(shape: list[int], density: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=draw) < density
    value = Masked.of(torch.randn(shape, generator=draw), mask)
    kind, packed = value.places()
    assert torch.equal(mask_of(kind, packed, tuple(shape), len(value.entries)), mask)
    size, count = mask.numel(), int(mask.sum())
    as_bits, as_list = -(-size // 8), -(-count * max(size - 1, 0).bit_length() // 8)
    assert packed.numel() == (0 if count == size else min(as_bits, as_list))


def test_what_is_not_said_is_zero_or_what_lies_below() -> None:
    value = Masked(torch.tensor([5.0, 7.0]), torch.tensor([[False, True], [True, False]]))
    assert value.shape == (2, 2)
    assert value.dense().tolist() == [[0, 5], [7, 0]]
    below = torch.ones(2, 2)
    assert value.over(below).tolist() == [[1, 5], [7, 1]]
    assert below.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("entries", "mask"),
    [
        (torch.ones(2), torch.tensor([True, False])),
        (torch.ones(1, 1), torch.tensor([True, False])),
        (torch.ones(1), torch.tensor([1, 0])),
    ],
)
def test_entries_and_mask_fit_together(entries: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask|places"):
        Masked(entries, mask)


@pytest.mark.parametrize(
    ("kind", "packed", "shape", "count"),
    [
        ("bits", [0b101], (3,), 3),  # two places
        ("bits", [0b1101], (3,), 2),  # a bit behind the last entry
        ("bits", [0b1, 0], (3,), 1),
        ("list", [0b00_01], (4,), 2),  # 1 and 0
        ("list", [0b01_01], (4,), 2),  # 1 twice
        ("list", [0b11], (3,), 1),  # 3 of 3
        ("list", [], (0,), 0),
        ("all", [1], (1,), 1),
        ("all", [], (3,), 2),
        ("some", [], (3,), 3),
        (["all"], [], (3,), 3),
        ("bits", [], (-1, 0), 0),
    ],
)
def test_other_places_are_refused(kind: object, packed: list[int], shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        mask_of(kind, torch.tensor(packed, dtype=torch.uint8), shape, count)


def test_they_are_values_like_others_in_files() -> None:
    mask = torch.tensor([[True, False, False], [False, False, True]])
    notes = Notes()
    notes.put("a", {"w": Masked(torch.tensor([1.5, 2.5]), mask), "n": 3})
    found = notes.get("a")
    assert found["n"] == 3
    assert torch.equal(found["w"].mask, mask)
    assert found["w"].entries.tolist() == [1.5, 2.5]
    assert not forms.finite([Masked(torch.tensor([math.inf, 0.0]), mask)])
