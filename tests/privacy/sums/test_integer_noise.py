"""Skellam noise: its distribution, and that parts of it add up to it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from weft.privacy.secret import Secret
from weft.privacy.sums.integer_noise import LARGEST, _poisson, skellam


def chi_square(drawn: np.ndarray, variance: float) -> float:
    """The p-value of counts against the distribution of scipy, values of which fewer than 10 are expected in one heap."""
    low, high = int(drawn.min()), int(drawn.max())
    values = np.arange(low, high + 1)
    expected = stats.skellam(variance / 2, variance / 2).pmf(values) * len(drawn)
    counts = np.bincount(drawn - low, minlength=len(values))
    common = expected >= 10
    rest = [len(drawn) - expected[common].sum()], [len(drawn) - counts[common].sum()]
    return float(stats.chisquare(np.append(counts[common], rest[1]), np.append(expected[common], rest[0])).pvalue)


@pytest.mark.parametrize("variance", [1, 2, 3, 25, 1000])
def test_it_is_distributed_as_by_scipy(variance: int) -> None:
    drawn = skellam(Secret.of("skellam", variance), variance, 50_000)
    assert drawn.dtype == np.int64
    assert chi_square(drawn, variance) > 1e-3
    assert chi_square(drawn, 1.2 * variance) < 1e-3


def test_parts_of_clients_add_up_to_the_noise_of_the_sum() -> None:
    parts = [skellam(Secret.of("part", i), 5, 50_000) for i in range(8)]
    assert chi_square(np.sum(parts, axis=0), 40) > 1e-3


@pytest.mark.parametrize("twice", [1, 2, 7, 200, 10**5])
def test_tables_hold_the_poisson_distribution(twice: int) -> None:
    lowest, thresholds, rests = _poisson(twice)
    assert len(rests) == len(thresholds)
    assert all(0 <= rest < 2**64 for rest in rests)
    assert (np.diff(thresholds.astype(float)) >= 0).all()
    cdf = stats.poisson(twice / 2).cdf(lowest + np.arange(len(thresholds)))
    assert thresholds.astype(float) * 2.0**-64 == pytest.approx(cdf, abs=1e-12)


class Words(Secret):
    """A secret that gives these words of 64 bits, each draw's in turn."""

    def __init__(self, *draws: list[int]) -> None:
        self.draws = [np.array(words, "<u8").tobytes() for words in draws]

    def bytes(self, n: int) -> bytes:
        words = self.draws.pop(0)
        assert len(words) == n
        return words


def test_a_threshold_is_how_many_words_lie_below_it() -> None:
    """So the word before it gives the lower number, and the word itself the next one; of 128 bits."""
    lowest, thresholds, rests = _poisson(2)
    place = len(thresholds) // 4
    assert lowest == 0
    assert thresholds[place - 1] < thresholds[place] < thresholds[place + 1]
    at, rest = int(thresholds[place]), rests[place]
    words, more = [at - 1, at, at, at + 1], ([rest - 1], [rest])
    assert skellam(Words(words, *more, [1] * 4), 2, 4).tolist() == [place, place, place + 1, place + 1]
    assert skellam(Words([1] * 4, words, *more), 2, 4).tolist() == [-place, -place, -place - 1, -place - 1]


def test_thresholds_that_begin_alike_are_told_apart_by_the_other_bits() -> None:
    """In the tails there are numbers rarer than 2⁻⁶⁴, which 128 bits can still draw."""
    _, thresholds, rests = _poisson(200)
    first = int(np.searchsorted(thresholds, 0, side="right"))
    assert first > 1, "several numbers lie below the first word of 64 bits"
    assert rests[:first] == sorted(rests[:first])
    for place in (p for p in range(first) if rests[p]):
        drawn = skellam(Words([0], [rests[place]], [2**63]), 200, 1) - skellam(Words([0], [rests[place] - 1], [2**63]), 200, 1)
        same = sum(rests[k] == rests[place] for k in range(first))
        assert drawn.tolist() == [same]


def test_no_variance_is_no_noise_and_a_large_one_is_taken() -> None:
    assert not skellam(Secret.of(0), 0, 10).any()
    drawn = skellam(Secret.of("large"), 10**8, 20_000)
    assert stats.kstest(drawn / 1e4, "norm").pvalue > 1e-3
    for variance in (-1, LARGEST + 1):
        with pytest.raises(ValueError, match="a variance is from 0 to"):
            skellam(Secret.of(0), variance, 1)


def test_noise_of_one_secret_comes_again_and_another_is_another() -> None:
    assert (skellam(Secret.of(1), 100, 50) == skellam(Secret.of(1), 100, 50)).all()
    assert (skellam(Secret.of(1), 100, 50) != skellam(Secret.of(2), 100, 50)).any()
