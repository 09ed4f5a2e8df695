"""Masks: which entries go, how budgets are spread over layers, and which entries are worth the time that they take."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.aggregation import pruning


def test_the_smallest_scores_go_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 0.0, 5.0]])
    alive = torch.tensor([[True, True, True], [True, False, True]])
    assert pruning.smallest(scores, alive, 2).tolist() == [[False, True, False], [True, False, False]]
    assert pruning.largest(scores, alive, 1).tolist() == [[False, False, False], [False, False, True]]
    ties = torch.ones(5)
    assert pruning.smallest(ties, ties > 0, 2).tolist() == [True, True, False, False, False]
    assert pruning.largest(ties, ties > 0, 2).tolist() == [True, True, False, False, False]


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_a_share_of_what_is_alive_goes_and_one_stays(size: int, share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores, alive = torch.rand(size, generator=draw), torch.rand(size, generator=draw) < 0.7
    left = pruning.pruned(scores, alive, share)
    count = int(alive.sum())
    assert not bool((left & ~alive).any())
    assert int(left.sum()) == (max(count - int(share * count), 1) if count else 0)
    if bool((gone := alive & ~left).any()):
        assert float(scores[gone].max()) <= float(scores[left].min())


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 1.0])
def test_erdos_renyi_densities_keep_the_whole_density(density: float, kernel: bool) -> None:
    shapes = {"conv": (16, 8, 3, 3), "wide": (512, 128), "head": (10, 512), "small": (4, 4)}
    found = pruning.erdos_renyi(shapes, density, kernel)
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    assert sum(found[n] * sizes[n] for n in shapes) == pytest.approx(density * sum(sizes.values()))
    assert all(0 < d <= 1 for d in found.values())
    free = [n for n in shapes if found[n] < 1]
    raw = {n: sum(s if kernel else s[:2]) / math.prod(s if kernel else s[:2]) for n, s in shapes.items()}
    ratios = [found[n] / raw[n] for n in free]
    assert ratios == pytest.approx(ratios[:1] * len(ratios))
    assert all(raw[n] >= max((raw[m] for m in free), default=0.0) for n in shapes if n not in free)


def test_schedules_begin_and_end_where_they_should() -> None:
    assert [pruning.gradual(t, 10, 20, 0.8, 0.1) for t in (0, 10, 20, 99)] == pytest.approx([0.1, 0.1, 0.8, 0.8])
    assert pruning.gradual(15, 10, 20, 0.8) == pytest.approx(0.8 - 0.8 / 8)
    assert [pruning.cosine(t, 100, 0.2) for t in (0, 50, 100, 150)] == pytest.approx([0.2, 0.1, 0.0, 0.0])


def test_two_of_four_stay_in_each_group() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 9.0, 0.0]])
    assert pruning.n_of_m(scores).tolist() == [[True, False, True, False, True, False, True, False]]
    with pytest.raises(ValueError, match=r"2 of every 4 .* \(3, 6\)"):
        pruning.n_of_m(torch.zeros(3, 6))


def test_whole_rows_go_by_their_norms() -> None:
    scores = torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 2.0], [9.0, 9.0]])
    alive = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    assert pruning.by_rows(scores, alive, 0.4).tolist() == [[False, False], [True, True], [True, False], [False, False]]
    assert int(pruning.by_rows(scores, alive, 1.0).any(1).sum()) == 1


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.0, 3.0), st.floats(0.05, 3.0))
def test_no_other_choice_of_entries_has_more_gain_for_its_time(seed: int, gain: float, time: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    gains = {"a": torch.rand(2, 3, generator=draw).double(), "b": torch.rand(4, generator=draw).double()}
    kept = {n: torch.rand(v.shape, generator=draw) < 0.2 for n, v in gains.items()}
    times = {"a": 0.3, "b": 0.8}
    gain += sum(float(gains[n][m].sum()) for n, m in kept.items())
    time += sum(times[n] * int(m.sum()) for n, m in kept.items())
    found = pruning.worth_their_time(gains, kept, times, gain, time)
    free = [(n, i) for n, m in kept.items() for i in (~m).flatten().nonzero().squeeze(1).tolist()]

    def ratio(more: list[tuple[str, int]]) -> float:
        return (gain + sum(float(gains[n].flatten()[i]) for n, i in more)) / (time + sum(times[n] for n, _ in more))

    best = max(ratio(list(some)) for k in range(len(free) + 1) for some in itertools.combinations(free, k))
    mine = [(n, i) for n, i in free if bool(found[n].flatten()[i])]
    assert ratio(mine) == pytest.approx(best)
    assert all(bool(found[n][m].all()) for n, m in kept.items())


def test_what_is_worth_its_time_does_not_depend_on_its_unit() -> None:
    gains, kept = {"a": torch.rand(50).double()}, {"a": torch.arange(50) % 3 == 0}
    gain = float(gains["a"][kept["a"]].sum())
    one = pruning.worth_their_time(gains, kept, {"a": 0.1}, gain, 2.0)
    assert torch.equal(one["a"], pruning.worth_their_time(gains, kept, {"a": 0.7}, gain, 14.0)["a"])
    assert 0 < int(one["a"].sum()) < 50
    assert bool(pruning.worth_their_time(gains, kept, {"a": 0.1}, gain, 1e9)["a"].all())
    assert int(pruning.worth_their_time(gains, kept, {"a": 0.1}, gain, 2.0, most=20)["a"].sum()) == 20
    with_cost_alone = pruning.worth_their_time(gains, kept, {"a": 0.1}, gain, 0.1 * 17)["a"]
    assert bool((gains["a"][with_cost_alone & ~kept["a"]] > gain / 17).all())
