"""Product codes against scikit-learn's k-means, and what a rotation that is fitted along is worth."""

from __future__ import annotations

import numpy as np
import pytest

from weft.tensors import product_codes
from weft.tensors.product_codes import fit, nearest


def drawn(n: int = 300, d: int = 12, seed: int = 0) -> np.ndarray:
    """Clusters in few directions, turned away from the axes."""
    draw = np.random.default_rng(seed)
    flat = np.zeros((n, d))
    flat[:, :3] = draw.normal(size=(8, 3))[draw.integers(8, size=n)] * 3 + draw.normal(size=(n, 3))
    turn, _ = np.linalg.qr(draw.normal(size=(d, d)))
    return flat @ turn


def error(x: np.ndarray, codes: np.ndarray) -> float:
    """Mean squared distance of vectors to the best that can be made of their codes: a sum of one vector per slot and code."""
    columns = [(codes == c).astype(float)[:, s] for s in range(codes.shape[1]) for c in range(int(codes.max()) + 1)]
    design = np.stack(columns, 1)
    best = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    return float(np.square(x - best).sum(1).mean())


def test_one_slot_is_k_means_and_no_worse_than_scikit_learn_s() -> None:
    from sklearn.cluster import KMeans

    x = drawn()
    codes = fit(x, 1, 8)
    assert (codes.shape, int(codes.min()), int(codes.max())) == ((300, 1), 0, 7)
    means = np.stack([x[codes[:, 0] == c].mean(0) for c in range(8)])
    assert np.array_equal(nearest(x, means), codes[:, 0])  # where Lloyd's steps end
    inertia = float(np.square(x - means[codes[:, 0]]).sum())
    assert inertia <= 1.1 * KMeans(8, n_init=1, random_state=0).fit(x).inertia_


def test_equal_vectors_have_equal_codes_and_the_same_is_made_of_the_same() -> None:
    x = drawn(40)
    x = np.concatenate([x, x[::-1]])
    codes = fit(x, 3, 4, 2)
    assert np.array_equal(codes[:40], codes[40:][::-1])
    assert np.array_equal(codes, fit(x, 3, 4, 2))
    assert not np.array_equal(codes, fit(x, 3, 4, 2, seed=1))


def test_a_rotation_that_is_fitted_along_loses_less() -> None:
    x = drawn()
    assert error(x, fit(x, 4, 4, 10)) < 0.8 * error(x, fit(x, 4, 4))


@pytest.mark.parametrize("slots", [1, 5, 12, 20])
def test_slots_need_not_divide_the_dimension_and_there_may_be_more_centroids_than_vectors(slots: int) -> None:
    x = drawn(6)
    codes = fit(x, slots, 32, 1)
    assert codes.shape == (6, slots)
    assert codes.max() < 6


def test_vectors_that_are_all_alike_have_one_code() -> None:
    assert not fit(np.ones((5, 6)), 2, 4, 3).any()
    assert product_codes.STEPS > 1
