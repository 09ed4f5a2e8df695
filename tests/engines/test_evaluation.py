"""Which client is the worst, of metrics of which more is better and of which less is, and how many rows a number is of."""

from __future__ import annotations

import math

import pytest

from weft.engines.evaluation import per_client, records
from weft.tasks.task import Score, goodness


def found(metric: str, *values: float) -> dict[str, tuple[float, int]]:
    own = {str(i): Score(metric, value) for i, value in enumerate(values)}
    return {e.pooling: (e.value, e.n) for e in per_client(own, metric, view="global", people="own test")}


@pytest.mark.parametrize(
    ("metric", "worst"), [("accuracy", 2.0), ("rouge_l", 2.0), ("perplexity", 9.0), ("mse", 9.0), ("loss", 9.0)]
)
def test_the_worst_client_has_the_least_of_what_is_good_and_the_most_of_what_is_bad(metric: str, worst: float) -> None:
    assert found(metric, 4.0, 9.0, 2.0) == {"mean over clients": (5.0, 3), "worst client": (worst, 3)}


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_what_is_no_number_is_the_worst_of_all(metric: str) -> None:
    for values in ((math.nan, 1.0), (1.0, math.nan)):
        assert math.isnan(found(metric, *values)["worst client"][0])
    assert goodness(metric, None) == goodness(metric, math.nan) < goodness(metric, 1e300)
    assert goodness(metric, math.nan) < goodness(metric, -1e300)


def test_clients_are_compared_by_one_metric_though_some_have_no_text_to_score() -> None:
    own = {"a": Score("perplexity", 9.0), "b": Score("rouge_l", 0.5), "c": Score("rouge_l", 0.25)}
    common = {"view": "global", "people": "own test"}
    both = per_client(own, "rouge_l", **common)
    assert [(e.metric, e.value, e.n) for e in both] == [("rouge_l", 0.375, 2), ("rouge_l", 0.25, 2)]
    silent = per_client({"a": own["a"]}, "rouge_l", **common)
    assert [(e.metric, e.value, e.n) for e in silent] == [("perplexity", 9.0, 1)] * 2
    assert per_client({}, "rouge_l", **common) == []


def test_a_score_of_some_rows_says_of_how_many() -> None:
    scores = [Score("perplexity", 2.0), Score("rouge_l", 0.5, n=3)]
    assert [e.n for e in records(scores, 9, view="global", people="global test")] == [9, 3]
