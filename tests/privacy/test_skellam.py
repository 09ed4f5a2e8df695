"""What noise in whole numbers costs, against the divergences of scipy's distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from weft.errors import UserError
from weft.privacy import accounting, skellam
from weft.privacy.hiding import Privacy, mechanisms

LEVELS = 2**15 - 1


def exact(order: int, variance: float, apart: int) -> float:
    """The Rényi divergence of Skellam's distribution from itself, moved."""
    k = np.arange(-3000, 3001)
    half = variance / 2
    p, q = stats.skellam(half, half).logpmf(k - apart), stats.skellam(half, half).logpmf(k)
    there = np.isfinite(p) & np.isfinite(q)
    return float(np.logaddexp.reduce(order * p[there] + (1 - order) * q[there]) / (order - 1))


@pytest.mark.parametrize("order", [2, 5, 16])
@pytest.mark.parametrize("apart", [1, 3, 10])
@pytest.mark.parametrize("variance", [4.0, 100.0, 2500.0])
def test_the_bound_holds_and_is_tight_for_much_noise(variance: float, apart: int, order: int) -> None:
    found, bound = exact(order, variance, apart), skellam.divergence(order, variance, apart**2, apart)
    assert 0 < found <= bound
    if variance == 2500:
        assert bound < 1.02 * found


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
def test_it_costs_what_gaussian_noise_costs_and_a_little_more(noise: float) -> None:
    gaussian = accounting.epsilon(noise, 1.0, 10, 1e-5, "rdp")
    assert gaussian < skellam.epsilon(noise, LEVELS, 10, 1e-5) < 1.1 * gaussian
    assert skellam.epsilon(noise, 7, 10, 1e-5) > skellam.epsilon(noise, LEVELS, 10, 1e-5), "few levels cost more"


def test_noise_that_is_found_keeps_its_epsilon() -> None:
    z = skellam.noise_for(8.0, LEVELS, 20, 1e-5)
    assert skellam.epsilon(z, LEVELS, 20, 1e-5) <= 8.0 < skellam.epsilon(0.995 * z, LEVELS, 20, 1e-5)
    with pytest.raises(UserError, match="no noise gives epsilon 1e-09"):
        skellam.noise_for(1e-9, LEVELS, 1000, 1e-12)


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert skellam.epsilon(1.0, LEVELS, 0, 1e-5) == 0
    assert skellam.epsilon(0.0, LEVELS, 1, 1e-5) == math.inf
    assert skellam.epsilon(0.0, LEVELS, 0, 1e-5) == 0.0


def test_whoever_knows_the_cohort_is_not_fooled_by_lots() -> None:
    """A server that asks clients knows whom it asks: with sums under masks a share of clients costs what all do."""
    alone, summed = (
        Privacy(mechanisms(text), rounds=20, participation=0.1) for text in ("dp-fedavg:noise=1", "dp-fedavg:noise=1+secagg")
    )
    assert alone.spent_on_clients(20) < accounting.epsilon(1.0, 1.0, 20, 1e-5) < summed.spent_on_clients(20)


def test_parts_of_the_least_clients_are_noise_enough() -> None:
    plan = Privacy(mechanisms("dp-fedavg:noise=2,clip=1+secagg:bits=16,least=5"))
    assert plan.part_of_noise * 5 >= (2 * LEVELS) ** 2 > (plan.part_of_noise - 1) * 5
    assert Privacy(mechanisms("secagg")).part_of_noise == 0
