"""Boxes that texts give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
import weft
from weft.errors import UserError
from weft.tasks.boxes import box_of, found, overlap
from weft.tasks.judging import check_wanted, judge


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.25, 0.5, 0.6]", (0.1, 0.25, 0.5, 0.6)),
        ("The b is at <box>(12,20),(50,61)</box>, and so on.", (12, 20, 50, 61)),
        ("<loc0102><loc0205><loc0500><loc0610> cat", (102, 205, 500, 610)),
        ("[ 3 , 1 , 14 , 12 ]", (3, 1, 14, 12)),
        ("3 1 14 12", (3, 1, 14, 12)),
        ("it has 4 legs: [1, 2, 3, 4]", (1, 2, 3, 4)),
        ("[-1, 0, 3, 4]", (-1, 0, 3, 4)),
        ("[.1, .25, .5, -.6]", (0.1, 0.25, 0.5, -0.6)),
        ("[1, 2, 3, 4] or [5, 6, 7, 8]", (1, 2, 3, 4)),
        ("[1, 2, 3]", None),
        ("1 and 2 and 3 and 4", None),
        ("2024", None),
        ("", None),
    ],
)
def test_a_box_is_read_in_the_forms_of_the_field(text: str, box: tuple[float, ...] | None) -> None:
    assert box_of(text) == box


@pytest.mark.parametrize(
    ("given", "wanted", "share"),
    [
        ("[0, 0, 4, 4]", "[0, 0, 4, 4]", 1.0),
        ("[0, 0, 4, 4]", "[2, 0, 6, 4]", 8 / 24),
        ("[0, 0, 4, 4]", "[1, 1, 3, 3]", 4 / 16),
        ("[0, 0, 2, 2]", "[2, 0, 4, 2]", 0.0),
        ("[0, 0, 2, 2]", "[3, 3, 4, 4]", 0.0),
        ("[4, 4, 0, 0]", "[0, 0, 4, 4]", 0.0),
        ("[1, 1, 1, 1]", "[1, 1, 1, 1]", 0.0),
        ("top left", "[0, 0, 4, 4]", 0.0),
    ],
)
def test_overlap_is_the_intersection_over_the_union(given: str, wanted: str, share: float) -> None:
    assert overlap(given, wanted) == pytest.approx(share, abs=1e-12)
    assert overlap(wanted, given) == pytest.approx(share, abs=1e-12)


def test_half_of_the_union_is_enough_to_be_found() -> None:
    assert found("[0, 0, 4, 2]", "[0, 0, 4, 4]")
    assert not found("[0, 0, 4, 1.9]", "[0, 0, 4, 4]")


def test_texts_are_judged_by_their_boxes() -> None:
    columns = judge(("iou", "box_accuracy"), ["[0, 0, 4, 2]", "[0, 0, 1, 1]", "left"], ["[0, 0, 4, 4]"] * 3)
    assert columns["iou"].tolist() == [0.5, 1 / 16, 0.0]
    assert columns["box_accuracy"].tolist() == [True, False, False]
    assert columns["box_accuracy"].dtype == bool


@pytest.mark.parametrize(("answers", "many"), [(["[0, 0, 4, 4]", "top left"], "1 of 2"), (["[20, 30, 10, 10]"] * 3, "3 of 3")])
def test_answers_that_nothing_could_overlap_with_are_refused(answers: list[str], many: str) -> None:
    with pytest.raises(UserError, match=f"{many} answers hold none with an inside, such as .*: write two opposite corners"):
        check_wanted(("perplexity", "iou"), answers)
    check_wanted(("perplexity", "exact_match"), answers)
    check_wanted(("box_accuracy", "iou"), ["[0, 0, 4, 4]", "it is at (1, 2), (3, 4)"])


def test_a_run_says_so_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"w{i}", "answer": f"w{i % 3}"}) for i in range(20)))
    with pytest.raises(UserError, match=r"the metric iou is of boxes, and .* answers hold none"):
        weft.run(
            data=str(tmp_path / "rows.jsonl"), task="generation", model=tiny.folder("llama", "lm"), metrics=("iou",), clients=2,
            rounds=1, quiet=True, runs=tmp_path / "runs",
        )  # fmt: skip
