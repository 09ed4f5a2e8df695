"""Forgetting and backward transfer, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from weft.engines.evaluation import Evaluation
from weft.engines.transfer import BACKWARD, FORGETTING, SO_FAR, by_period, called, over_periods
from weft.federation.arrivals import Arrivals, period_at


def scored(*values: float, view: str = "global", metric: str = "accuracy") -> list[Evaluation]:
    head = [Evaluation(view, "global test", "received", metric, "pooled", 0.1, 9)]
    return head + [Evaluation(view, called(p), "received", metric, "pooled", v, 9) for p, v in enumerate(values)]


def line(period: int, *values: float, **more: Any) -> dict[str, Any]:
    return {"period": period, "evaluations": [e.record() for e in scored(*values, **more)]}


def told(found: list[Evaluation]) -> dict[str, float]:
    return {e.people: e.value for e in found}


def test_by_hand() -> None:
    lines = [line(0, 0.5), line(0, 0.8), {"period": 1}, line(1, 0.6, 0.7), line(1, 0.9, 0.6), line(2, 0.1, 0.1, 0.1)]
    found = told(over_periods(lines, scored(0.5, 0.65, 0.4), 2))
    assert found[SO_FAR] == pytest.approx((0.5 + 0.65 + 0.4) / 3)
    # the first had 0.8 at the end of its own and 0.9 at that of the next; the second 0.6
    assert found[FORGETTING] == pytest.approx(((0.9 - 0.5) + (0.6 - 0.65)) / 2)
    assert found[BACKWARD] == pytest.approx(((0.5 - 0.8) + (0.65 - 0.6)) / 2)


def test_in_the_first_period_nothing_can_be_forgotten() -> None:
    assert told(over_periods([line(0, 0.3)], scored(0.4), 0)) == {SO_FAR: 0.4}


def test_where_less_is_better_losing_is_still_above_zero() -> None:
    lines = [line(0, 3.0, metric="perplexity")]
    found = told(over_periods(lines, scored(5.0, 2.0, metric="perplexity"), 1))
    assert found == {SO_FAR: 3.5, FORGETTING: 2.0, BACKWARD: -2.0}


def test_each_view_has_its_own() -> None:
    lines = [{"period": 0, "evaluations": line(0, 0.9)["evaluations"] + line(0, 0.5, view="personal")["evaluations"]}]
    found = over_periods(lines, [*scored(0.6, 0.7), *scored(0.4, 0.6, view="personal")], 1)
    lost = {e.view: e.value for e in found if e.people == FORGETTING}
    assert lost == {"global": pytest.approx(0.3), "personal": pytest.approx(0.1)}


def test_periods_without_a_number_are_left_out() -> None:
    lines = [line(0, math.nan), line(1, 0.5, 0.6)]
    found = {e.people: (e.value, e.n) for e in over_periods(lines, scored(0.4, math.nan, 0.7), 2)}
    assert found[SO_FAR] == (pytest.approx(0.55), 2)
    assert found[FORGETTING] == (pytest.approx(0.1), 1)
    assert BACKWARD not in found
    assert over_periods([], scored(), 1) == []


@pytest.mark.parametrize(
    ("rounds", "number", "wanted"), [(6, 3, [0, 0, 1, 1, 2, 2]), (5, 2, [0, 0, 1, 1, 1]), (3, 1, [0, 0, 0]), (1, 3, [2])]
)
def test_rounds_are_shared_out_among_periods(rounds: int, number: int, wanted: list[int]) -> None:
    assert [period_at(t, rounds, number) for t in range(rounds)] == wanted
    assert period_at(rounds + 5, rounds, number) == number - 1


def test_test_rows_of_the_periods_so_far() -> None:
    arrivals = Arrivals(np.array([0, 1, 2, -1, 0, 1]), 3)
    found = by_period(arrivals, np.array([5, 4, 3, 2, 0]), 1)
    assert {p: rows.tolist() for p, rows in found.items()} == {"period 1": [4, 0], "period 2": [5]}
    assert by_period(None, np.arange(3), 2) == {}
