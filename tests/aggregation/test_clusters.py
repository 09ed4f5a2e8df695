"""Clusters of clients: average linkage of angles, and clusters drawn at random."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

from weft.aggregation.clusters import at_random, by_angle


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_clusters_are_those_of_average_linkage_on_cosines(n: int) -> None:
    g = torch.Generator().manual_seed(3)
    vectors = {f"c{i}": torch.randn(4, 6, generator=g, dtype=torch.float64) for i in range(9)}
    found = by_angle(vectors, n)
    rows = torch.stack([v.flatten() for v in vectors.values()]).numpy()
    other = AgglomerativeClustering(n, metric="cosine", linkage="average").fit_predict(rows)
    together = {(a, b) for a in vectors for b in vectors if found[a] == found[b]}
    index = {name: i for i, name in enumerate(vectors)}
    assert together == {(a, b) for a in vectors for b in vectors if other[index[a]] == other[index[b]]}
    assert len(set(found.values())) == n


def test_length_of_a_vector_says_nothing() -> None:
    a, b = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    found = by_angle({"a": a, "far": 100 * a, "b": b, "near": 0.01 * b}, 2)
    assert found["a"] == found["far"] != found["b"] == found["near"]


def test_no_more_vectors_than_clusters_are_each_alone() -> None:
    assert by_angle({"a": torch.ones(2), "b": torch.ones(2)}, 3) == {"a": 0, "b": 1}
    assert by_angle({}, 2) == {}


@pytest.mark.parametrize(("k", "n", "sizes"), [(12, 4, [3, 3, 3, 3]), (11, 3, [3, 3, 5]), (2, 4, [2])])
def test_random_clusters_are_of_one_size_but_for_the_last(k: int, n: int, sizes: list[int]) -> None:
    names = [f"c{i}" for i in range(k)]
    draws = [at_random(names, n, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert sorted(Counter(draws[0].values()).values()) == sizes
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] or len(set(draws[0].values())) == 1
