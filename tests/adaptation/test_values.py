"""Tensors that sit in no layer: where they start, and matrices whose rows are orthogonal."""

from __future__ import annotations

import pytest
import torch

import tiny
from weaving import pack_of, values_for
from weft.adaptation.part import Part
from weft.adaptation.values import NOWHERE, Values
from weft.tensors.init import Init

VALUES = Values((("table", (2, 3)), ("keys", Init((4, 8), "uniform", 0.5))))


def test_a_value_starts_at_zero_or_at_a_start_value_of_its_own() -> None:
    found = VALUES.tensors(tiny.backbone("bert"), NOWHERE)
    assert found == {"table": Init((2, 3)), "keys": Init((4, 8), "uniform", 0.5)}
    drawn = found["keys"].draw(0, "a/values/keys")
    assert torch.equal(drawn, found["keys"].draw(0, "a/values/keys"))
    assert not torch.equal(drawn, found["keys"].draw(0, "b/values/keys"))
    assert 0.3 < float(drawn.abs().max()) <= 0.5
    assert not found["table"].draw(0, "a/values/table").any()


def test_a_pack_has_them_with_a_client_axis() -> None:
    of = tiny.bench("bert")
    parts: dict[str, Part] = {"a": VALUES}
    given = [values_for(of, parts, seed=i) for i in range(2)]
    pack = pack_of(of, [parts] * 2, given)
    assert {n: tuple(v.shape) for n, v in pack.params("a").items()} == {"a/values/table": (2, 2, 3), "a/values/keys": (2, 4, 8)}


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
def test_rows_of_an_orthogonal_start_are_orthogonal_and_of_one_length_or_its_columns(shape: tuple[int, int]) -> None:
    drawn = Init(shape, "orthogonal", 2.0).draw(0, "keys").double()
    assert drawn.shape == shape
    gram = drawn @ drawn.T if shape[0] <= shape[1] else drawn.T @ drawn
    torch.testing.assert_close(gram, 4.0 * torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-5)
    assert not torch.equal(drawn, Init(shape, "orthogonal", 2.0).draw(1, "keys").double())


def test_values_are_equal_if_their_start_values_are_number_by_number() -> None:
    def of(*numbers: float) -> Values:
        return Values((("slope", Init((len(numbers),), "value", value=torch.tensor(numbers))), ("table", (2, 3))))

    assert of(0.5, 1.0) == of(0.5, 1.0)
    assert hash(of(0.5, 1.0)) == hash(of(0.5, 1.0))
    assert of(0.5, 1.0) != of(0.5, 2.0)
    assert Init((2,)) != Init((2,), "value", value=torch.zeros(2))
    assert Init((2,), "normal", 0.1) != Init((2,), "normal", 0.2)
    assert Init((2,)) != (2,)
