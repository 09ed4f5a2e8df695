"""Prototypes of one class: its mean, a random share of its examples, or centres of clusters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import by_hand
from weft.aggregation.prototypes import pick

WIDTH = 16


def some(n: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", ["mean", "random", "cluster"])
def test_a_class_with_a_single_example_has_one_prototype_which_is_that_example(how: str) -> None:
    z = some(1)
    assert torch.equal(pick(z, how, 0.1, stream()), z)


def test_the_mean_is_one_row_whatever_the_share() -> None:
    z = some()
    found = pick(z, "mean", 0.9, stream())
    assert found.shape == (1, WIDTH)
    by_hand.close(found[0], sum(z) / 30, 1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.34, 11), (0.001, 1), (1.0, 30)])
@pytest.mark.parametrize("how", ["random", "cluster"])
def test_a_share_of_the_examples_is_rounded_up(how: str, share: float, count: int) -> None:
    assert pick(some(), how, share, stream()).shape == (count, WIDTH)


def test_random_prototypes_are_examples_and_none_comes_twice() -> None:
    z = some()
    for share in (0.3, 1.0):
        found = pick(z, "random", share, stream())
        which = [int((z == row).all(1).nonzero()) for row in found]
        assert len(set(which)) == len(which) == math.ceil(30 * share)
    assert not torch.equal(pick(z, "random", 0.3, stream(1)), pick(z, "random", 0.3, stream(2)))
    assert torch.equal(pick(z, "random", 0.3, stream(1)), pick(z, "random", 0.3, stream(1)))


def test_as_many_clusters_as_examples_are_the_examples() -> None:
    z = some(12)
    assert torch.equal(pick(z, "cluster", 1.0, stream()), z)


def test_centres_are_means_of_the_examples_nearest_to_them_and_weighted_by_size_they_give_the_mean_of_the_class() -> None:
    z = some(60) + 4 * some(3).repeat_interleave(20, 0)
    found = pick(z, "cluster", 0.1, stream())
    assert len(found) == 6
    nearest = torch.cdist(z, found).argmin(1)
    for c, centre in enumerate(found):
        by_hand.close(centre, z[nearest == c].mean(0), 1e-10)
    sizes = torch.bincount(nearest, minlength=6).double()
    by_hand.close(sizes @ found / 60, z.mean(0), 1e-10)


def test_equal_examples_make_one_cluster() -> None:
    z = some(3).repeat(4, 1)
    by_hand.close(pick(z, "cluster", 1.0, stream()), some(3), 1e-12)
    assert pick(z[:1].repeat(5, 1), "cluster", 1.0, stream()).shape == (1, WIDTH)
