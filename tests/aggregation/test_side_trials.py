"""Side trials: what a round costs, who tries what, for how long, in which order, and who wins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from weft.aggregation.side_trials import (
    Group,
    Rates,
    begun,
    neighbours,
    next_to_play,
    rounds_within,
    seconds_of_trial,
    winner,
)

CARD = {"deeper": 1, "wider": 8, "deepest": 12, "widest": 64}


def traced(depth: int, width: int, factor: float, batches: float, winners: list[str]) -> list[tuple[int, int, int, float]]:
    """(round, depth, width, seconds of a round) of each switch, as the code's log counts: from -1, R - 1 on at each."""
    found, at = [], -1
    for name in winners:
        groups = begun(neighbours(depth, width, **CARD), seconds_of_trial(depth, factor), Rates(), batches)
        own = groups[name]
        at += own.rounds - 1
        depth, width = own.depth, own.width
        found.append((at, depth, width, round(own.cost, 6)))
    return found


def test_the_recorded_run_on_20news() -> None:
    found = traced(0, 8, 60, 29, ["wide", "deep", "wide"])
    assert found == [(79, 0, 16, 0.74), (88, 2, 16, 5.78), (177, 2, 24, 5.98)]
    assert [rounds_within(60 * f, cost) for f, cost in ((1, 0.74), (1, 5.78), (9, 5.98))] == [81, 10, 90]


def test_the_recorded_run_on_onto() -> None:
    found = traced(1, 8, 90, 20, ["wide", "stay", "stay", "deep"])
    assert [switch[:3] for switch in found] == [(206, 1, 16), (413, 1, 16), (620, 1, 16), (727, 2, 16)]
    assert seconds_of_trial(1, 90) == 450


def test_a_round_costs_what_it_sends_and_what_it_computes() -> None:
    assert Rates(bandwidth=2.0, head_seconds=0.5, block_seconds=3.0).of_round(0, 64, 7) == pytest.approx(8 * 0.02 / 2 + 7 * 0.5)
    assert Rates(bandwidth=2.0, head_seconds=0.5, block_seconds=3.0).of_round(4, 64, 7) == pytest.approx(
        8 * (0.02 + 0.05 * 4 * 64 / 32) / 2 + 7 * 4 * 3.0
    )


def test_neighbours_skip_depth_one_and_what_would_be_tried_twice() -> None:
    assert neighbours(0, 8, **CARD) == {"stay": (0, 8), "wide": (0, 16), "deep": (2, 8)}
    assert neighbours(1, 8, **CARD) == {"stay": (1, 8), "wide": (1, 16), "deep": (2, 8)}
    assert neighbours(12, 16, **CARD) == {"stay": (12, 16), "wide": (12, 24)}
    assert neighbours(3, 64, **CARD) == {"stay": (3, 64), "deep": (4, 64)}
    assert neighbours(12, 64, **CARD) == {"stay": (12, 64)}
    assert neighbours(0, 8, **CARD | {"deeper": 3}) == {"stay": (0, 8), "wide": (0, 16), "deep": (3, 8)}
    assert neighbours(11, 60, **CARD | {"deeper": 5}) == {"stay": (11, 60), "wide": (11, 64), "deep": (12, 60)}
    assert neighbours(0, 8, **CARD | {"deeper": 0, "wider": 0}) == {"stay": (0, 8)}
    assert neighbours(0, 8, **CARD | {"deepest": 1}) == {"stay": (0, 8), "wide": (0, 16), "deep": (1, 8)}


def test_depth_and_width_never_fall_and_stay_within_their_bounds() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        depth, width = int(draw.integers(0, 3)), 8 * int(draw.integers(1, 4))
        for _ in range(40):
            tried = neighbours(depth, width, **CARD)
            after = tried[str(draw.choice(list(tried)))]
            assert depth <= after[0] <= 12
            assert width <= after[1] <= 64
            assert after[1] % 8 == 0
            depth, width = after
        assert depth > 2


def test_of_equal_groups_the_one_that_stays_wins_then_the_wide_one() -> None:
    def of(**scores: float | None) -> str | None:
        return winner({group: Group(1, 8, 1.0, 3, 3, score) for group, score in scores.items()})

    assert of(deep=0.5, wide=0.5, stay=0.5) == "stay"
    assert of(deep=0.5, wide=0.5, stay=0.4) == "wide"
    assert of(deep=0.51, wide=0.5, stay=0.5) == "deep"
    assert of(deep=None, wide=0.1, stay=None) == "wide"
    assert of(deep=-3.0, stay=-2.0) == "stay"
    assert of(stay=None) is None


@pytest.mark.parametrize(("depth", "width", "batches"), [(0, 16, 29), (2, 16, 29), (1, 8, 3)])
def test_groups_keep_together_in_seconds_and_play_all_their_rounds(depth: int, width: int, batches: int) -> None:
    groups = begun(neighbours(depth, width, **CARD), seconds_of_trial(depth, 60), Rates(), batches)
    slowest, rounds = max(own.cost for own in groups.values()), 0
    while playing := next_to_play(groups):
        clocks = [own.clock for own in groups.values() if not own.over]
        assert max(clocks) - min(clocks) <= slowest + 1e-9
        assert [groups[group].clock for group in playing] == sorted(groups[group].clock for group in playing)
        groups |= {group: replace(groups[group], played=groups[group].played + 1) for group in playing}
        rounds += 1
    assert all(own.over for own in groups.values())
    assert rounds <= max(own.rounds for own in groups.values()) + 3


def test_a_round_longer_than_the_trial_is_played_once() -> None:
    assert rounds_within(60, 1000.0) == 1
