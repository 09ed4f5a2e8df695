"""Directions: the same bits wherever they are drawn, the distribution they are said to have, and sums in one order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from weft.tensors import directions
from weft.tensors.directions import CHUNK, combination, direction, levels
from weft.tensors.keyed import key

LONG = 2 * CHUNK + 5


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def plain(seed: int, number: int, size: int) -> np.ndarray:
    """From words and quantiles, one entry after another, in chunks of 2^16."""
    values = norm.ppf((np.arange(2**16) + 0.5) / 2**16)
    values /= values.std()
    found: list[float] = []
    for chunk in range(-(-size // 2**16)):
        words = np.random.PCG64(key(seed, "direction", number, chunk)).random_raw(2**14)
        found += [values[(int(word) >> shift) % 2**16] for word in words for shift in (0, 16, 32, 48)]
    return np.array(found[:size])


def test_entries_are_quantiles_of_a_normal_distribution_chosen_by_sixteen_bits_of_a_stream(threads: int) -> None:
    for size in (1, 7, CHUNK, LONG):
        found = direction(3, 11, size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, plain(3, 11, size), rtol=0, atol=2**-20)


def test_the_bits_are_pinned() -> None:
    """Whoever changes them makes other models of the accumulated scalars of older runs."""
    table = hashlib.sha256(levels().astype("<f4").tobytes()).hexdigest()
    assert table == "e8cfff23047b7e58f6ae180f798c0bd13cfa7a46c5e6db798596865662071226"
    assert np.array_equal(levels() * 2**20, np.round(levels() * 2.0**20))
    some = hashlib.sha256(direction(0, 1, LONG).astype("<f4").tobytes()).hexdigest()
    assert some == "59f0fbaddad53c6b44b6cc839aef93b0186afe3a0b183e677519db303855745f"


def test_entries_have_mean_0_and_variance_1_and_are_normal_up_to_the_steps() -> None:
    values = levels().astype(np.float64)
    assert abs(values.mean()) < 1e-12
    assert abs(values.var() - 1) < 1e-6
    assert abs((values**4).mean() - 3) < 1e-3
    many = np.concatenate([direction(0, j, 20_000) for j in range(20)])
    assert kstest(many, "norm").pvalue > 0.01


def test_directions_of_other_numbers_seeds_and_chunks_have_nothing_to_do_with_each_other() -> None:
    one = direction(0, 1, LONG)
    others = [direction(0, 2, LONG), direction(1, 1, LONG), np.roll(one, CHUNK)]
    for other in others:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / LONG**0.5
    assert np.array_equal(direction(0, 1, 100), one[:100])


def test_a_sum_is_taken_in_the_order_of_the_numbers_to_the_bit(threads: int) -> None:
    weights = np.random.default_rng(0).normal(size=40)
    weights[5:25] = 0
    wanted = np.zeros(LONG)
    for j in (*range(5), *range(25, 40)):
        wanted = wanted + direction(7, j, LONG).astype(np.float64) * weights[j]
    found = combination(7, weights, LONG)
    assert found.dtype == np.float64
    assert np.array_equal(found, wanted)
    backwards = sum(direction(7, j, LONG).astype(np.float64) * weights[j] for j in reversed(range(40)))
    assert not np.array_equal(found, backwards), "if all orders gave the same bits, this would show nothing"


def test_a_direction_of_weight_0_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = directions._drawn

    def noted(seed: int, number: int, chunk: int, size: int) -> np.ndarray:
        drawn.append(number)
        return draw(seed, number, chunk, size)

    monkeypatch.setattr(directions, "_drawn", noted)
    assert not combination(0, np.zeros(9), 50).any()
    combination(0, np.array([0.0, 2.0, 0.0, -1.0]), 50)
    assert drawn == [1, 3]
