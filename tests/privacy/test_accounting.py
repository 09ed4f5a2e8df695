"""What noise costs, against dp-accounting and opacus, which reckon by themselves."""

from __future__ import annotations

import math
from typing import Literal

import opacus
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import UserError
from weft.privacy import accounting, skellam

DELTA = 1e-5


@pytest.mark.parametrize(
    ("noise", "share", "times"), [(1.0, 0.05, 200), (0.7, 0.01, 1000), (5.0, 1.0, 10), (2.0, 0.3, 40), (20.0, 0.01, 8000)]
)
def test_epsilon_is_that_of_the_libraries(noise: float, share: float, times: int) -> None:
    one: dp_event.DpEvent = dp_event.GaussianDpEvent(noise)
    if share < 1:
        one = dp_event.PoissonSampledDpEvent(share, one)
    wanted = (
        PLDAccountant(value_discretization_interval=2e-5).compose(dp_event.SelfComposedDpEvent(one, times)).get_epsilon(DELTA)
    )
    found = accounting.epsilon(noise, share, times, DELTA)
    assert wanted - 1e-9 <= found <= wanted * 1.003, "rounded up, and by little"
    wanted = RdpAccountant().compose(dp_event.SelfComposedDpEvent(one, times)).get_epsilon(DELTA)
    assert accounting.epsilon(noise, share, times, DELTA, "rdp") == pytest.approx(wanted, rel=1e-9)
    assert found < wanted, "Rényi differential privacy says more"


def test_opacus_comes_to_the_same() -> None:
    other = opacus.accountants.RDPAccountant()
    other.history = [(1.0, 0.05, 200)]
    assert accounting.epsilon(1.0, 0.05, 200, DELTA, "rdp") == pytest.approx(other.get_epsilon(DELTA), rel=0.02)


def test_a_tree_costs_what_its_levels_cost() -> None:
    """A leaf is a part of as many nodes as there are levels: one Gaussian of all of them together (Kairouz et al. 2021)."""
    for steps in (1, 2, 3, 4, 7, 8, 15):
        tree = dp_event.SingleEpochTreeAggregationDpEvent(3.0, [steps])
        wanted = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
        wanted.compose(dp_event.SelfComposedDpEvent(tree, 2))
        found = accounting.epsilon(3.0 / math.sqrt(accounting.levels(steps)), 1.0, 2, DELTA, "rdp")
        assert found == pytest.approx(wanted.get_epsilon(DELTA), rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.3, 20), st.floats(0.001, 1.0), st.integers(1, 300))
def test_noise_that_is_found_keeps_its_epsilon_and_little_less_would_not(epsilon: float, share: float, times: int) -> None:
    z = accounting.noise_for(epsilon, share, times, DELTA)
    assert accounting.epsilon(z, share, times, DELTA) <= epsilon
    assert accounting.epsilon(z * 0.995, share, times, DELTA) > epsilon * 0.99


def test_more_costs_more() -> None:
    base = accounting.epsilon(1.0, 0.1, 100, DELTA)
    assert accounting.epsilon(2.0, 0.1, 100, DELTA) < base
    assert accounting.epsilon(1.0, 0.2, 100, DELTA) > base
    assert accounting.epsilon(1.0, 0.1, 200, DELTA) > base
    assert accounting.epsilon(1.0, 0.1, 100, 1e-7) > base
    assert accounting.epsilon(0.0, 0.1, 1, DELTA) == math.inf
    assert accounting.epsilon(0.0, 0.1, 0, DELTA) == 0.0


@given(st.floats(1e-6, 1.0))
def test_shares_are_rounded_up(share: float) -> None:
    assert share <= accounting.up(share) <= min(share * 1.0101, 1.0)


def test_no_noise_is_enough() -> None:
    with pytest.raises(UserError, match="no noise gives epsilon 1e-09"):
        accounting.noise_for(1e-9, 1.0, 1000, 1e-12)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("reckon", ["plain", "skellam"])
def test_noise_of_any_size_has_an_epsilon(reckon: str, accountant: Literal["pld", "rdp"]) -> None:
    """Of squares that are no numbers, too, and of little noise, whose losses are too many to be listed one by one."""

    def epsilon(z: float) -> float:
        return accounting.epsilon(z, 0.1, 60, DELTA, accountant) if reckon == "plain" else skellam.epsilon(z, 8191, 2, DELTA)

    found = [epsilon(z) for z in (1e-300, 1e-4, 1e-2, 1.0, 1e5, 1e300)]
    assert found == sorted(found, reverse=True), "more noise never costs more"
    assert found[0] == math.inf
    assert 1e3 < found[2] < found[1] < math.inf
    assert found[-1] < 1e-3


def test_little_noise_is_found_for_a_large_epsilon() -> None:
    for target in (1e3, 1e6, 1e9):
        z = accounting.noise_for(target, 1.0, 2, DELTA)
        assert 0.9 * target < accounting.epsilon(z, 1.0, 2, DELTA) <= target
