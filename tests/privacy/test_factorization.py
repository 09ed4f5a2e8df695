"""Noise over rounds, against matrices that are made without it: SciPy's square root, and a tree's nodes one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from weft.privacy.factorization import NOISE, Banded, Factorization, Tree, begin_pass
from weft.privacy.mechanism import BANDS, DPFTRL

LENGTHS = (8, 16, 64, 256)


def sums(n: int) -> np.ndarray:
    """A: what adds up rounds."""
    return np.tril(np.ones((n, n)))


def root(n: int, bands: int) -> np.ndarray:
    """C of the square root, cut off."""
    whole = np.real(sqrtm(sums(n).T)).T
    assert np.allclose(whole @ whole, sums(n))
    return np.tril(whole) - np.tril(whole, -bands)


def nodes(n: int) -> np.ndarray:
    """C of a tree: the node that ends in round s, from the last multiple of its length, and the rounds below it."""
    found = np.zeros((n, n))
    for s in range(1, n + 1):
        length = 1
        while s % (2 * length) == 0:
            length *= 2
        found[s - 1, s - length : s] = 1
    return found


def path(of: Factorization, z: Tensor, kept: dict[str, Any] | None = None) -> np.ndarray:
    """The noise of each round [n, k], of numbers z [n, k]."""
    kept = {} if kept is None else kept
    return np.stack([of.noise(kept, {"a": row})["a"].numpy() for row in z])


def matrix(of: Factorization, n: int) -> np.ndarray:
    """C⁻¹ [n, n], as the rounds' noise is made."""
    return path(of, torch.eye(n, dtype=torch.float64))


CASES = [(Banded(n, b), root(n, b)) for n, b in ((1, 1), (2, 2), (5, 3), (8, 8), (8, 1), (16, 4), (16, 16), (40, 40), (64, 20))]
CASES += [(Banded(7, 50), root(7, 7))]
CASES += [(Tree(n), nodes(n)) for n in (1, 2, 3, 7, 8, 11, 16)]
IDS = [f"{type(f).__name__}-{len(c)}-{getattr(f, 'bands', '')}" for f, c in CASES]


@pytest.mark.parametrize(("of", "c"), CASES, ids=IDS)
def test_noise_of_sums_over_rounds_is_b_z(of: Factorization, c: np.ndarray) -> None:
    n = len(c)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    b = sums(n) @ np.linalg.inv(c)
    assert np.allclose(np.cumsum(path(of, z), 0), b @ z.numpy(), atol=1e-8)


@pytest.mark.parametrize(("of", "c"), CASES, ids=IDS)
def test_sensitivity_is_the_largest_norm_of_a_column(of: Factorization, c: np.ndarray) -> None:
    """Of the matrix that the noise is made by, too: one client in one round moves no more than its column."""
    assert np.allclose(np.linalg.inv(matrix(of, len(c))), c, atol=1e-8)
    norms = [math.sqrt(sum(x * x for x in column)) for column in c.T]
    assert of.sensitivity == pytest.approx(max(norms), rel=1e-9)


def test_coefficients_are_those_of_the_binomial_series() -> None:
    assert Banded(10, 6).coefficients == pytest.approx([math.comb(2 * k, k) / 4**k for k in range(6)], rel=1e-12)


@pytest.mark.parametrize(("of", "c"), [(Banded(8, 8), root(8, 8)), (Banded(8, 3), root(8, 3)), (Tree(8), nodes(8))])
def test_the_covariance_of_sums_is_that_of_the_matrix(of: Factorization, c: np.ndarray) -> None:
    k, z = 100_000, 1.7
    draws = z * torch.randn(8, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = np.cumsum(path(of, draws), 0)
    b = sums(8) @ np.linalg.inv(c)
    wanted = z**2 * b @ b.T
    sizes = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs((found @ found.T / k - wanted) / sizes).max() < 5 * math.sqrt(2 / k)


def error(of: Factorization, n: int) -> tuple[float, float]:
    """Variance of the noise of sums over rounds at noise 1 on a part that moves by 1: mean over rounds, and after the last."""
    each = np.square(np.cumsum(matrix(of, n), 0)).sum(1) * of.sensitivity**2
    return float(each.mean()), float(each[-1])


@pytest.mark.parametrize("n", LENGTHS)
def test_the_error_of_sums_is_less_than_a_tree_s(n: int) -> None:
    """At equal ε, for a pass of one length has one sensitivity."""
    tree, usual, whole = error(Tree(n), n), error(DPFTRL().factors(n), n), error(Banded(n, n), n)
    ones = sum(t.bit_count() for t in range(1, n + 1)) / n
    assert tree[0] == pytest.approx(ones * n.bit_length())
    assert usual[0] < tree[0] / 2
    assert whole[0] < tree[0] / 2
    assert whole[1] < tree[1]
    assert whole == usual or n > BANDS


def test_a_band_fewer_keeps_a_noise_fewer() -> None:
    kept: dict[str, Any] = {}
    path(Banded(12, 4), torch.ones(12, 5, dtype=torch.float64), kept)
    assert {n: tuple(v.shape) for n, v in kept.items()} == {f"{NOISE}/a": (3, 5)}
    kept = {}
    path(Banded(12, 1), torch.ones(12, 5, dtype=torch.float64), kept)
    assert kept == {}


@pytest.mark.parametrize("of", [Banded(8, 8), Banded(8, 3), Tree(8)])
def test_what_is_kept_is_not_changed_in_place(of: Factorization) -> None:
    """A round that is undone has the tensors back that were there before it."""
    kept: dict[str, Any] = {}
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path(of, z[:3], kept)
    before = dict(kept)
    copies = {n: v.clone() if isinstance(v, Tensor) else v for n, v in kept.items()}
    first = path(of, z[3:6], kept)
    assert all(torch.equal(v, copies[n]) if isinstance(v, Tensor) else v == copies[n] for n, v in before.items())
    assert np.array_equal(path(of, z[3:6], before), first)


def test_a_tensor_that_is_not_always_sent_has_rounds_of_its_own() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of, kept = Banded(6, 6), dict[str, Any]()
    there = [0, 1, 3, 5]
    found = [of.noise(kept, {"a": z[t], "b": z[t]} if t in there else {"b": z[t]}) for t in range(6)]
    assert np.allclose([found[t]["a"].numpy() for t in there], path(of, z[there]))
    assert np.allclose([f["b"].numpy() for f in found], path(of, z))


@pytest.mark.parametrize("of", [Banded(8, 5), Tree(8)])
def test_a_tensor_of_another_shape_begins_anew(of: Factorization) -> None:
    kept: dict[str, Any] = {}
    path(of, torch.ones(3, 3, dtype=torch.float64), kept)
    z = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(of.noise(kept, {"a": z[0]})["a"], z[0])
    assert not torch.equal(of.noise(kept, {"a": z[1]})["a"], z[1]) or isinstance(of, Tree)


@pytest.mark.parametrize("of", [Banded(4, 4), Tree(4)])
def test_a_pass_knows_nothing_of_the_one_before(of: Factorization) -> None:
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept: dict[str, Any] = {"clip": 0.1, "told/noise": 1}
    path(of, z[:4], kept)
    begin_pass(kept)
    assert kept == {"clip": 0.1, "told/noise": 1}
    assert np.array_equal(path(of, z[4:], kept), path(of, z[4:]))
