"""Spreads and paired intervals against SciPy's own tests, and what is told of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from weft.comparison import compared_tables as tables
from weft.comparison.cell_grid import Grid
from weft.comparison.statistics import difference, spread


def test_an_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        a, b = rng.normal(size=n), rng.normal(0.3, size=n)
        found, wanted = difference(list(a), list(b)), stats.ttest_rel(b, a)
        low, high = wanted.confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert found.mean == pytest.approx((b - a).mean())
        assert found.seen == (wanted.pvalue < 0.05)


def test_one_number_has_no_spread_and_one_pair_no_interval() -> None:
    assert math.isnan(spread([0.5]).deviation)
    assert spread([0.25, 0.75]).deviation == pytest.approx(np.std([0.25, 0.75], ddof=1))
    assert not difference([0.0], [1.0]).seen
    with pytest.raises(ValueError, match="make no pairs"):
        difference([], [])


GRID = Grid(("fedit", "flora", "fedbf"), seeds=(0, 1, 2), dimensions={"alpha": (0.1, 0.5)})


def records(metric: str = "accuracy", **scores: list[float]) -> list[dict[str, object]]:
    """Six scores of each method, by place and seed."""
    found: list[dict[str, object]] = []
    for slug, values in scores.items():
        for value, (alpha, seed) in zip(values, [(a, s) for a in (0.1, 0.5) for s in (0, 1, 2)], strict=True):
            numbers = {"common": value, "own": value, "worst": None, "bytes_up": 2e3, "bytes_down": None, "seconds": 1.5}
            about = {"tuned": None, "reason": "", "finished": True, "metric": metric, "aggregation_error": None}
            about |= {"drift": 0.5, "memory": 1_250_000_000}
            work = {"steps": 20 if slug == "fedbf" else 10, "examples": 320}
            found.append({"method": slug, "alpha": alpha, "seed": seed} | about | numbers | work)
    return found


FIRST = [0.50, 0.52, 0.51, 0.60, 0.62, 0.61]


def test_differences_are_of_the_same_seed_and_place_and_what_covers_zero_is_not_seen() -> None:
    better = [v + d for v, d in zip(FIRST, (0.10, 0.11, 0.09, 0.10, 0.10, 0.10), strict=True)]
    noise = [v + d for v, d in zip(FIRST, (0.1, -0.1, 0.05, -0.06, 0.02, 0.0), strict=True)]
    table = tables.of_differences(GRID, records(fedit=FIRST, flora=better, fedbf=noise))
    assert table is not None
    flora, fedbf = table.rows
    assert flora[:1] + flora[2:4] == ("flora", "6", "better")
    assert flora[1].startswith("+10.0 [+9.")
    assert fedbf[3] == tables.NONE_SEEN
    perplexity = tables.of_differences(GRID, records("perplexity", fedit=FIRST, flora=better, fedbf=noise))
    assert perplexity is not None
    assert perplexity.rows[0][3] == "worse"
    assert perplexity.rows[0][1].startswith("+0.100 [+0.09")


def test_only_a_best_that_is_seen_to_be_better_than_all_others_stands_out() -> None:
    better = [v + d for v, d in zip(FIRST, (0.10, 0.11, 0.09, 0.10, 0.10, 0.10), strict=True)]
    near = [v - d for v, d in zip(better, (0.05, -0.05, 0.02, -0.02, 0.01, 0.0), strict=True)]
    first, _ = tables.of_places(GRID, records(fedit=FIRST, flora=better, fedbf=[v - 0.2 for v in FIRST]))
    assert first.bold == {(1, 1), (1, 2)}
    assert first.rows[1][1] == "61.0 ± 1.7"
    assert dict(zip(first.columns, first.rows[1], strict=True))["memory, MB"] == "1,250"
    again, _ = tables.of_places(GRID, records(fedit=FIRST, flora=better, fedbf=near))
    assert not again.bold
    less, _ = tables.of_places(GRID, records("perplexity", fedit=FIRST, flora=better, fedbf=[v + 0.3 for v in FIRST]))
    assert less.bold == {(0, 1), (0, 2)}


def test_other_work_is_marked_and_cells_without_a_result_are_told_with_their_reason() -> None:
    found = records(fedit=FIRST, flora=FIRST, fedbf=FIRST)
    for lost in (0, 1):
        found[lost] |= {"finished": False, "common": None, "own": None, "reason": "fedit broke."}
    table, _ = tables.of_places(GRID, found)
    column = table.columns.index("steps")
    assert [row[column] for row in table.rows] == ["10", "10", "20*"]
    assert table.rows[0][table.columns.index("seeds")] == "1"
    assert table.notes.count("fedit: fedit broke.") == 1
    assert any(note.startswith("* Other work") for note in table.notes)
    assert not any("not committed" in note for note in table.notes)
    found[3]["commit"] = "abc-dirty"
    assert any("not committed" in note for note in tables.of_places(GRID, found)[1].notes)


def test_a_dimension_that_makes_no_difference_is_told() -> None:
    alike = records(fedit=FIRST[:3] * 2, flora=FIRST[:3] * 2)
    assert tables.without_effect(GRID, alike) == ["alpha"]
    assert tables.without_effect(GRID, records(fedit=FIRST[:3] * 2, flora=FIRST)) == []
    alike[4]["bytes_up"] = 1.0
    assert tables.without_effect(GRID, alike) == []
    assert tables.without_effect(GRID, alike[:3]) == []


def test_scores_by_another_metric_are_not_mixed_in() -> None:
    found = records(fedit=FIRST, flora=FIRST)
    for r in found[6:8]:
        r["metric"] = "perplexity"
    first, _ = tables.of_places(GRID, found)
    assert first.rows[1][1] == f"{100 * FIRST[2]:.1f}"
    assert "flora: its headline is perplexity, and not accuracy" in first.notes
    between = tables.of_differences(GRID, found)
    assert between is not None
    assert between.rows[0][2] == "4"


@pytest.mark.parametrize("metric", ["token_accuracy", "entity_f1", "f1:x", "recall", "pearson", "mse", "perplexity"])
def test_shares_are_told_in_per_cent(metric: str) -> None:
    unit = "" if metric in ("pearson", "mse", "perplexity") else ", %"
    assert tables.of_places(GRID, records(metric, fedit=FIRST))[0].columns[1] == f"all test rows{unit}"
