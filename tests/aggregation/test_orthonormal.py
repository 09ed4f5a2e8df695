"""New rows that are orthogonal to earlier ones, as long as there is room."""

from __future__ import annotations

import pytest
import torch

from weft.aggregation.orthonormal import beside
from weft.tensors.keyed import generator


@pytest.mark.parametrize(("earlier", "rows"), [(0, 5), (3, 4), (15, 5), (19, 1)])
def test_new_rows_are_orthonormal_to_each_other_and_to_earlier_ones_of_any_length(earlier: int, rows: int) -> None:
    old = (
        torch.randn(earlier, 20, generator=generator(1), dtype=torch.float64)
        * torch.logspace(-3, 3, max(earlier, 1))[:earlier, None]
    )
    before = old.clone()
    found = beside(old, rows, generator(2))
    assert torch.equal(old, before)
    assert found.shape == (rows, 20)
    assert torch.allclose(found @ found.T, torch.eye(rows, dtype=torch.float64), atol=1e-12)
    assert (found @ torch.nn.functional.normalize(old, dim=1).T).abs().max() < 1e-12 if earlier else True
    assert torch.equal(found, beside(old, rows, generator(2)))


def test_earlier_rows_that_depend_on_each_other_do_no_harm() -> None:
    old = torch.randn(2, 20, generator=generator(1), dtype=torch.float64).repeat(3, 1)
    assert (beside(old, 4, generator(2)) @ old.T).abs().max() < 1e-12


@pytest.mark.parametrize(("earlier", "rows"), [(18, 5), (40, 5), (0, 20)])
def test_without_room_new_rows_are_orthonormal_among_themselves(earlier: int, rows: int) -> None:
    found = beside(torch.randn(earlier, 20, dtype=torch.float64), rows, generator(2))
    assert torch.allclose(found @ found.T, torch.eye(rows, dtype=torch.float64), atol=1e-12)


def test_more_rows_than_there_are_coordinates_still_have_unit_length() -> None:
    found = beside(torch.zeros(0, 4), 10, generator(2))
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(10))
