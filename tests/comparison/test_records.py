"""Which of a run's many scores a comparison takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weft.comparison.cell_grid import Cell
from weft.comparison.cells import Done
from weft.comparison.records import record

POOLED, MODELS, MEAN, WORST = "pooled", "pooled over clients' models", "mean over clients", "worst client"
SCORES = {
    ("global", "global test", POOLED): 0.1,
    ("global", "own test", MEAN): 0.2,
    ("global", "own test", WORST): 0.3,
    ("global", "validation", POOLED): 0.4,
    ("personal", "common test", MODELS): 0.5,
    ("personal", "own test", MEAN): 0.6,
    ("personal", "own test", WORST): 0.7,
    ("personal", "validation", POOLED): 0.8,
    ("local", "global test", MODELS): 0.9,
    ("local", "own test", MEAN): 0.95,
}


def summary(*views: str) -> dict[str, Any]:
    scored = [
        {"view": view, "people": people, "pooling": pooling, "metric": metric, "value": value + more}
        for metric, more in (("accuracy", 0.0), ("loss", 1.0))
        for (view, people, pooling), value in SCORES.items()
        if view in views
    ]
    sent = {"train": {"up": {"wire": 300, "messages": 3}, "down": {"wire": 0, "messages": 0}}}
    return {
        "headline": {"metric": "accuracy"},
        "method": {"views": list(views)},
        "evaluations": scored,
        "bytes": sent,
        "rounds": 2,
        "work": {"steps": 3, "examples": 9},
        "seconds": {"training": 1.5},
        "aggregation_error": {"mean": 0.25, "last": 0.5},
        "drift": {"mean": 1.5, "last": 2.0},
        "memory": 4096,
        "settings": {"start_head": {"value": "probe"}},
        "data": {"fingerprint": "d"},
        "backbone": {"sha256": "w"},
        "environment": {"commit": None, "versions": {"weft": "1"}, "device": "cpu", "platform": "p"},
    }


@pytest.mark.parametrize(
    ("views", "wanted"),
    [
        (("global",), (0.1, 0.2, 0.3, 0.4)),
        (("global", "personal"), (0.1, 0.6, 0.7, 0.4)),
        (("personal",), (0.5, 0.6, 0.7, 0.8)),
        (("personal", "global"), (0.1, 0.6, 0.7, 0.8)),
        (("local",), (None, 0.95, None, None)),
    ],
)
def test_a_common_model_counts_on_all_rows_and_clients_own_ones_on_theirs(
    views: tuple[str, ...], wanted: tuple[float | None, ...]
) -> None:
    found = record(Done(Cell("fedit", {"alpha": 0.1}, 3, {}, ("lr", 1e-3)), Path("x"), summary(*views)))
    assert tuple(found[n] for n in ("common", "own", "worst", "validation")) == wanted
    assert (found["bytes_up"], found["bytes_down"], found["aggregation_error"]) == (100.0, None, 0.25)
    assert (found["drift"], found["effective_rank"], found["memory"]) == (1.5, None, 4096)
    assert (found["method"], found["alpha"], found["seed"], found["tuned"]) == ("fedit", 0.1, 3, "lr=0.001")


def test_of_clients_alone_each_row_is_put_to_one_of_their_models() -> None:
    alone = summary("global") | {"evaluations": [
        {"view": "global", "people": "global test", "pooling": MODELS, "metric": "accuracy", "value": 0.9}
    ]}  # fmt: skip
    assert record(Done(Cell("local", {}, 0, {}), Path("x"), alone))["common"] == 0.9


def test_a_cell_without_a_result_has_its_reason() -> None:
    found = record(Done(Cell("fedit", {}, 0, {}), Path("x"), None, "it broke."))
    assert (found["finished"], found["reason"], found["common"], found["metric"]) == (False, "it broke.", None, None)
