"""Which client is the worst, of metrics of which more is better and of which less is, and how many rows a number is of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.engines.evaluation import per_client, records
from weft.tasks.task import Score, goodness

WORDS = ("worst client", "first quartile", "median client", "third quartile", "best client")


def found(metric: str, *values: float) -> dict[str, tuple[float, int]]:
    own = {str(i): Score(metric, value) for i, value in enumerate(values)}
    return {e.pooling: (e.value, e.n) for e in per_client(own, metric, view="global", people="own test")}


@pytest.mark.parametrize(
    ("metric", "order"),
    [(m, (2.0, 3.0, 4.0, 6.5, 9.0)) for m in ("accuracy", "rouge_l")]
    + [(m, (9.0, 6.5, 4.0, 3.0, 2.0)) for m in ("perplexity", "mse", "loss")],
)
def test_the_worst_client_has_the_least_of_what_is_good_and_the_most_of_what_is_bad(
    metric: str, order: tuple[float, ...]
) -> None:
    assert found(metric, 4.0, 9.0, 2.0) == {"mean over clients": (5.0, 3)} | {
        w: (v, 3) for w, v in zip(WORDS, order, strict=True)
    }


def test_quartiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=23)
    own = found("accuracy", *values)
    for word, share in zip(WORDS, (0, 25, 50, 75, 100), strict=True):
        assert own[word][0] == pytest.approx(np.percentile(values, share))
        assert found("loss", *values)[word][0] == pytest.approx(np.percentile(values, 100 - share))


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
    assert [(e.metric, e.value, e.n) for e in both[:2]] == [("rouge_l", 0.375, 2), ("rouge_l", 0.25, 2)]
    silent = per_client({"a": own["a"]}, "rouge_l", **common)
    assert [(e.metric, e.value, e.n) for e in silent] == [("perplexity", 9.0, 1)] * 6
    assert per_client({}, "rouge_l", **common) == []


def test_a_score_of_some_rows_says_of_how_many() -> None:
    scores = [Score("perplexity", 2.0), Score("rouge_l", 0.5, n=3)]
    assert [e.n for e in records(scores, 9, view="global", people="global test")] == [9, 3]
