"""Whom clients take from, and how much: by hand, and what holds for any of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.aggregation.neighbours import apart, mixing, products_apart
from weft.tensors.lowrank import LowRank

LINE = torch.tensor([[0.0, 1, 4, 9], [1, 0, 3, 8], [4, 3, 0, 5], [9, 8, 5, 0]])
"""Four clients at 0, 1, 4 and 9."""


def test_the_nearest_take_part_by_the_inverse_of_their_distance() -> None:
    found = mixing(LINE, [10, 20, 30, 40], 2)
    w1, w2 = (1 / 1) / (1 / 1 + 1 / 4), (1 / 4) / (1 / 1 + 1 / 4)  # of client 0: those at 1 and 4
    rho = 10 / (10 + w1 * 20 + w2 * 30)
    torch.testing.assert_close(found[0], torch.tensor([rho, (1 - rho) * w1, (1 - rho) * w2, 0], dtype=torch.float64))
    v1, v2 = (1 / 8) / (1 / 8 + 1 / 5), (1 / 5) / (1 / 8 + 1 / 5)  # of client 3: those at 1 and 4
    rho = 40 / (40 + v1 * 20 + v2 * 30)
    torch.testing.assert_close(found[3], torch.tensor([0, (1 - rho) * v1, (1 - rho) * v2, rho], dtype=torch.float64))


def test_raw_shares_hardly_mix_anything_where_clients_have_many_rows() -> None:
    found = mixing(LINE, [1000, 2000, 3000, 4000], 2, "raw")
    total = 1000 + 1 / 1 + 1 / 4
    torch.testing.assert_close(found[0], torch.tensor([1000 / total, 1 / total, 0.25 / total, 0], dtype=torch.float64))
    assert found.diagonal().min() > 0.998


@pytest.mark.parametrize("share", ["default", "raw"])
@given(
    places=st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=1, max_size=7),
    neighbours=st.integers(0, 8),
    data=st.data(),
)
@settings(max_examples=50)
def test_rows_are_shares(share: Any, places: list[float], neighbours: int, data: Any) -> None:
    sizes = [data.draw(st.integers(1, 1000)) for _ in places]
    at = torch.tensor(places, dtype=torch.float64)
    found = mixing((at[:, None] - at).abs(), sizes, neighbours, share)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(len(places), dtype=torch.float64))
    assert bool((found.diagonal() > 0).all()) or share == "raw"  # where a peer at no distance swamps all
    assert bool(((found > 0).sum(1) <= 1 + min(neighbours, len(places) - 1)).all())


def test_without_neighbours_everybody_keeps_its_own() -> None:
    for share in ("default", "raw"):
        assert torch.equal(mixing(LINE, [1, 2, 3, 4], 0, share), torch.eye(4, dtype=torch.float64))  # type: ignore[arg-type]


def test_two_clusters_that_are_far_apart_take_nothing_from_each_other() -> None:
    at = torch.tensor([0.0, 0.1, 0.2, 0.3, 100, 100.1, 100.2, 100.3])
    found = mixing((at[:, None] - at).abs(), [5] * 8, 3)
    assert not found[:4, 4:].any()
    assert not found[4:, :4].any()
    assert found[:4, :4].gt(0).all()


def test_peers_at_no_distance_count_alike_and_others_next_to_nothing() -> None:
    at = torch.tensor([0.0, 0.0, 0.0, 1.0])
    found = mixing((at[:, None] - at).abs(), [4, 4, 4, 4], 3)
    assert found[0, 1] == found[0, 2] == pytest.approx(0.25)
    assert found[0, 3] < 1e-12
    assert math.isclose(float(found[0, 0]), 0.5)


def test_distances_are_those_of_whole_vectors_and_of_equal_ones_none() -> None:
    g = torch.Generator().manual_seed(0)
    values: list[dict[str, Tensor]] = [{"a": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)} for _ in range(3)]
    values.append({n: v.clone() for n, v in reversed(values[1].items())})
    flat = [torch.cat([v["a"].flatten(), v["b"]]).double() for v in values]
    wanted = torch.tensor([[float((x - y).norm()) for y in flat] for x in flat], dtype=torch.float64)
    found = apart(values)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert found[1, 3] == 0


def test_near_vectors_far_from_zero_lose_no_digits() -> None:
    """As the Gram matrix would: 1e16 - 1e16."""
    far = torch.full((10,), 1e8, dtype=torch.float64)
    assert float(apart([{"a": far}, {"a": far + 1e-6}])[0, 1]) == pytest.approx(1e-6 * 10**0.5, rel=0.02)


def test_distances_of_products_do_not_see_how_they_are_factored() -> None:
    g = torch.Generator().manual_seed(0)
    values = [[LowRank(torch.randn(6, 2, generator=g), torch.randn(2, 5, generator=g), 0.5) for _ in range(2)] for _ in range(3)]
    turned = [LowRank(2 * v.B, v.A / 2, v.scale) for v in values[0]]
    values += [turned, list(values[1])]
    dense = [torch.cat([v.dense().flatten() for v in own]).double() for own in values]
    wanted = torch.tensor([[float((x - y).norm()) for y in dense] for x in dense], dtype=torch.float64)
    found = products_apart(values)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found[1, 4] == 0
    assert found[0, 3] < 1e-5
    factors = apart([{str(i): torch.cat([v.A.flatten(), v.B.flatten()]) for i, v in enumerate(own)} for own in values])
    assert factors[0, 3] > 1
