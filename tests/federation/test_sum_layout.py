"""Where tensors stand in the vector of a sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.communication.strict import Refused
from weft.federation.sum_layout import SumLayout

LAYOUT = SumLayout({"a/A": ((4, 3), ((2, 3), (4, 3))), "a/s": ((), ((),)), "b/B": ((2,), ((2,),))}, 3)


def test_values_are_in_the_leading_slice_and_each_shape_has_a_slot() -> None:
    values, sent = LAYOUT.vector({"a/A": torch.ones(2, 3), "a/s": torch.tensor(5.0)})
    assert values.tolist() == [1] * 6 + [0] * 6 + [5] + [0] * 2
    assert dict(zip(LAYOUT.slots, sent.tolist(), strict=True)) == {
        ("a/A", (2, 3)): True,
        ("a/A", (4, 3)): False,
        ("a/s", ()): True,
        ("b/B", (2,)): False,
    }
    assert LAYOUT.tensors(values)["a/A"].tolist() == [[1] * 3] * 2 + [[0] * 3] * 2
    assert LAYOUT.parts == {"a": 13, "b": 2}


def test_an_entry_weighs_what_those_weigh_who_have_it() -> None:
    weights = LAYOUT.weights(np.array([3, 4, 7, 0]))
    assert weights["a/A"].tolist() == [[7] * 3] * 2 + [[4] * 3] * 2
    assert weights["a/s"].tolist() == 7
    assert "b/B" not in weights, "nobody has sent it"


@pytest.mark.parametrize("tensors", [{"a/A": torch.ones(3, 3)}, {"a/C": torch.ones(2)}, {"b/B": torch.ones(2, 1)}])
def test_what_has_no_place_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(Refused, match="The sum has no place for"):
        LAYOUT.vector(tensors)


def test_it_comes_across_the_wire() -> None:
    assert LAYOUT.written() == {"clients": 3, "shapes": {"a/A": "4x3 2x3 4x3", "a/s": ". .", "b/B": "2 2"}}
    assert SumLayout.read(LAYOUT.written()) == LAYOUT
    assert SumLayout.read(LAYOUT.written()).digest == LAYOUT.digest
    for other in ({"clients": 4}, {"shapes": {"b/B": "3 2"}}):
        assert SumLayout.read(LAYOUT.written() | other).digest != LAYOUT.digest


ODD = [
    *(None, [], {"a": 3}, {"a": ""}, {"a": "2"}, {"a": "2 3"}, {"a": "2 2x1"}, {"a": "-1 -1"}, {"a": "2 1 1"}, {"a": "02 2"}),
    *({"a": "3 2 1"}, {"a": "2  2"}, {"a": "2 2 "}, {"a": "x x"}),
]


@pytest.mark.parametrize("written", [None, [], {}, *({"clients": 2, "shapes": shapes} for shapes in ODD)])
def test_one_that_is_written_otherwise_is_refused(written: object) -> None:
    with pytest.raises(Refused, match="The layout of the sum is none"):
        SumLayout.read(written)


@pytest.mark.parametrize("clients", [0, -1, 2.0, True, "2", None, 1 << 25])
def test_a_number_of_clients_is_one(clients: object) -> None:
    with pytest.raises(Refused, match="The layout of the sum is none"):
        SumLayout.read({"clients": clients, "shapes": {"a": "2 2"}})


@given(st.dictionaries(st.text(max_size=3), st.text("0123456789x .-", max_size=12), max_size=3))
def test_whatever_is_read_is_written_the_same(shapes: dict[str, str]) -> None:
    written = {"clients": 2, "shapes": shapes}
    try:
        read = SumLayout.read(written)
    except Refused:
        return
    assert read.written() == written
