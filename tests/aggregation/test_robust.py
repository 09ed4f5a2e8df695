"""Robust rules hold the equations of their papers, and withstand what they say they withstand."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean
from torch import Tensor

from weft.aggregation import robust

quick = settings(max_examples=40)
HUGE = 1e30
Update = dict[str, Tensor]


def update(seed: int, around: float = 0.0, dtype: torch.dtype = torch.float64) -> Update:
    g = torch.Generator().manual_seed(seed)
    return {n: (around + torch.randn(s, generator=g, dtype=torch.float64)).to(dtype) for n, s in (("a", (3, 4)), ("b", (5,)))}


def flat(u: Update) -> np.ndarray:
    return np.concatenate([u[n].double().numpy().ravel() for n in sorted(u)])


def same(a: Update, b: Update) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


# how many ---------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 300), st.integers(0, 49))
def test_a_share_of_bad_updates_is_rounded_up(count: int, percent: int) -> None:
    assert robust.assumed_bad(count, percent / 100) == -(-count * percent // 100)


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, math.nan])
def test_a_share_that_no_rule_survives_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        robust.assumed_bad(10, share)


# clipping ---------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 50), st.floats(0.01, 20), st.sampled_from([torch.float32, torch.float64]))
def test_a_clipped_update_lies_in_its_direction_no_further_away_than_the_limit(
    seed: int, limit: float, dtype: torch.dtype
) -> None:
    value, held = update(seed, 3.0, dtype), update(seed + 100, 1.0, dtype)
    apart = flat(value) - flat(held)
    size = float(np.linalg.norm(apart))
    found = robust.clip(value, held, limit)
    expected = flat(held) + apart * min(1.0, limit / size)
    assert robust.distance(value, held) == pytest.approx(size, rel=1e-6)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-5, atol=1e-6)
    rounding = torch.finfo(dtype).eps * (robust.norm(found) + robust.norm(held))  # of the sum held + difference
    assert robust.distance(found, held) <= limit + rounding


def test_an_update_within_the_limit_comes_back_bit_for_bit() -> None:
    value, held = update(1), update(2)
    size = robust.distance(value, held)
    assert same(robust.clip(value, held, size), value)
    assert not same(robust.clip(value, held, size * (1 - 1e-9)), value)
    assert same(robust.clip(held, held, 0.0), held)
    assert same(robust.clip(value, held, 0.0), held)


def test_the_norm_is_of_all_tensors_together_and_knows_no_overflow() -> None:
    one = update(3)
    assert robust.norm(one) == pytest.approx(float(np.linalg.norm(flat(one))), rel=1e-12)
    assert robust.norm({}) == robust.norm({"a": torch.zeros(3), "b": torch.zeros(0)}) == 0.0
    for scale in (1e300, 1e-300):
        scaled = {n: t * scale for n, t in one.items()}
        assert robust.norm(scaled) == pytest.approx(scale * robust.norm(one), rel=1e-12)


def test_numbers_at_the_edge_of_floating_point_are_clipped_to_numbers() -> None:
    limits = torch.finfo(torch.float64)
    value, held = {"a": torch.full((4,), limits.max, dtype=torch.float64)}, {"a": torch.full((4,), -1.0, dtype=torch.float64)}
    found = robust.clip(value, held, 2.0)
    assert bool(found["a"].isfinite().all())
    assert robust.distance(found, held) <= 2.0 * (1 + 1e-12)
    beyond = robust.clip(value, {"a": -value["a"]}, 2.0)  # the difference itself is no number any more
    assert torch.equal(beyond["a"], -value["a"])


# medians and trimmed means ------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 9))
def test_the_median_is_that_of_each_coordinate(count: int) -> None:
    updates = [update(k) for k in range(count)]
    expected = [statistics.median(column) for column in np.stack([flat(u) for u in updates]).T.tolist()]
    np.testing.assert_allclose(flat(robust.median(updates)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("count", "share"), [(10, 0.2), (10, 0.1), (5, 0.2), (8, 0.25), (7, 0.0)])
def test_the_trimmed_mean_is_that_of_each_coordinate(count: int, share: float) -> None:
    updates = [update(k) for k in range(count)]
    expected = trim_mean(np.stack([flat(u) for u in updates]), share, axis=0)  # SciPy rounds down: here there is nothing to round
    np.testing.assert_allclose(flat(robust.trimmed_mean(updates, share)), expected, rtol=1e-12, atol=1e-15)


def test_each_name_counts_those_who_hold_it_and_one_that_would_be_trimmed_away_is_absent() -> None:
    a = [torch.tensor([float(k)]) for k in (5, 1, 9)]
    updates = [{"a": a[0], "b": a[0]}, {"a": a[1]}, {"a": a[2]}]
    assert {n: float(t) for n, t in robust.median(updates).items()} == {"a": 5.0, "b": 5.0}
    assert {n: float(t) for n, t in robust.trimmed_mean(updates, 0.2).items()} == {"a": 5.0}
    assert robust.median([]) == robust.trimmed_mean([], 0.2) == {}


@pytest.mark.parametrize("rule", [robust.median, lambda u: robust.trimmed_mean(u, 0.2)], ids=["median", "trimmed"])
def test_medians_and_trimmed_means_do_not_depend_on_the_order_by_a_bit(rule: object) -> None:
    updates = [update(k, dtype=torch.float32) for k in range(5)]
    assert callable(rule)
    first = rule(updates)
    assert all(same(rule(list(order)), first) for order in itertools.islice(itertools.permutations(updates), 0, 120, 7))
    assert same(rule([updates[0]] * 5), updates[0])  # and of equal updates they are that update


@quick
@given(st.integers(3, 12), st.integers(0, 1000), st.sampled_from([HUGE, -HUGE, 2.0, -0.5, 0.0]), st.booleans())
def test_a_minority_never_moves_a_coordinate_out_of_the_range_of_the_others(
    count: int, seed: int, value: float, alike: bool
) -> None:
    bad = robust.assumed_bad(count, 0.2)
    honest = [update(seed + k) for k in range(count - bad)]
    lies = [{n: torch.full_like(t, value if alike or k % 2 else -value) for n, t in honest[0].items()} for k in range(bad)]
    everybody = np.stack([flat(u) for u in honest])
    for found in (robust.median(lies + honest), robust.trimmed_mean(honest + lies, 0.2)):
        assert (flat(found) >= everybody.min(axis=0) - 1e-12).all()
        assert (flat(found) <= everybody.max(axis=0) + 1e-12).all()


# Krum -------------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(3, 11), st.integers(0, 1000))
def test_krum_scores_are_the_sums_over_the_nearest_others(count: int, seed: int) -> None:
    bad = (count - 3) // 2
    rows = [flat(update(seed + k)) for k in range(count)]
    expected = []
    for i, row in enumerate(rows):
        squares = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        expected.append(sum(squares[: count - bad - 2]))
    updates = [update(seed + k) for k in range(count)]
    assert robust.krum_scores(updates, bad) == pytest.approx(expected, rel=1e-12)
    assert robust.krum(updates, bad) == int(np.argmin(expected))
    assert robust.multi_krum(updates, bad) == sorted(np.argsort(expected, kind="stable")[: count - bad - 2].tolist())


@quick
@given(st.integers(0, 1000), st.sampled_from([HUGE, 20.0, -20.0]), st.integers(0, 9))
def test_krum_and_multi_krum_choose_nobody_who_stands_apart(seed: int, where: float, place: int) -> None:
    updates = [update(seed + k) for k in range(8)]
    for _ in range(2):  # a clique of two is not enough neighbours
        updates.insert(place % len(updates), {n: torch.full_like(t, where) for n, t in updates[0].items()})
    far = {i for i, u in enumerate(updates) if torch.equal(u["b"], torch.full_like(u["b"], where))}
    assert len(far) == 2
    assert robust.krum(updates, 2) not in far
    chosen = robust.multi_krum(updates, 2)
    assert len(chosen) == 6
    assert not far & set(chosen)


def test_an_absurd_update_does_not_cost_the_distances_of_the_others_their_digits() -> None:
    updates = [update(k, around=1e6, dtype=torch.float32) for k in range(6)]
    alone = robust.krum_scores([*updates, update(99, around=2e6)], 1)
    beside = robust.krum_scores([*updates, {n: torch.full_like(t, 3e38) for n, t in updates[0].items()}], 1)
    assert alone[:6] == beside[:6]


def test_the_first_of_equals_is_chosen() -> None:
    updates = [update(0)] * 5
    assert robust.krum(updates, 1) == 0
    assert robust.multi_krum(updates, 1) == [0, 1]


@pytest.mark.parametrize(("count", "bad"), [(2, 0), (4, 1), (6, 2), (5, -1)])
def test_krum_refuses_fewer_than_2f_plus_3_updates(count: int, bad: int) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        robust.krum([update(k) for k in range(count)], bad)


def test_krum_refuses_updates_that_hold_different_names_and_all_rules_refuse_other_shapes() -> None:
    updates = [update(k) for k in range(5)]
    with pytest.raises(ValueError, match="same names"):
        robust.krum([*updates[:4], {"a": updates[4]["a"]}], 1)
    odd = [*updates[:4], updates[4] | {"b": torch.zeros(6, dtype=torch.float64)}]
    for rule in (robust.median, lambda u: robust.trimmed_mean(u, 0.2), lambda u: robust.krum(u, 1)):
        with pytest.raises(ValueError, match="one shape"):
            rule(odd)
    with pytest.raises(ValueError, match="shape"):
        robust.clip(odd[4], updates[0], 1.0)


def test_updates_are_never_written_to_and_results_share_no_memory_with_them() -> None:
    updates = [update(k) for k in range(5)]
    for found in (robust.median(updates), robust.trimmed_mean(updates, 0.2), robust.median(updates[:1])):
        for tensor in found.values():
            tensor.fill_(7.0)
    assert all(same(u, update(k)) for k, u in enumerate(updates))
