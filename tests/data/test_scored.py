"""Rows with numbers: which columns they come from, and what is no number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from weft.data import ClientData, FederatedData, Rows, Source, hub_sets, load
from weft.data.hub import from_hub
from weft.data.hub import unknown as unlisted
from weft.data.scored import from_classes
from weft.errors import UserError

TEXTS = [f"text number {i}" for i in range(12)]
SCORES = [i / 4 for i in range(12)]


def written(folder: Path, scores: list[Any], name: str = "score") -> Path:
    path = folder / "rows.csv"
    pd.DataFrame({"text": TEXTS, name: scores}).to_csv(path, index=False)
    return path


def numbers(source: Source) -> list[float]:
    assert source.train.numbers is not None
    return source.train.numbers.tolist()


@pytest.mark.parametrize("name", ["score", "rating", "label"])
def test_a_column_of_numbers_is_read_from_files_frames_and_sets(tmp_path: Path, name: str) -> None:
    table = {"text": TEXTS, name: SCORES}
    for data in (written(tmp_path, SCORES, name), pd.DataFrame(table), datasets.Dataset.from_dict(table)):
        source = load(data, wanted="numbers")
        assert numbers(source) == SCORES
        assert source.classes == (name,)
        assert source.train.labels.tolist() == [0] * 12


def test_rows_without_a_number_are_left_out_and_counted(tmp_path: Path) -> None:
    source = load(written(tmp_path, [None, *SCORES[1:-1], float("nan")]), wanted="numbers")
    assert numbers(source) == SCORES[1:-1]
    assert any("2 of 12" in note or "2 train" in note for note in source.notes), source.notes
    assert source.train.ids.tolist() == list(range(1, 11))


def test_whole_numbers_are_classes_unless_numbers_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, [i % 3 for i in range(12)], "label")
    assert load(path).train.numbers is None
    assert load(path, wanted="any").train.numbers is None
    assert numbers(load(path, wanted="numbers")) == [i % 3 for i in range(12)]
    assert numbers(from_classes(load(path))) == [i % 3 for i in range(12)]


def test_fractions_are_refused_as_classes_and_known_as_numbers_where_either_will_do() -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": SCORES})
    with pytest.raises(UserError, match="--task regression"):
        load(frame)
    assert numbers(load(frame, wanted="any")) == SCORES


def test_a_column_of_a_csv_that_is_no_class_may_be_numbers(tmp_path: Path) -> None:
    """As a site reads it, which does not know the task yet, and ``weft data``."""
    for name in ("label", "score"):
        assert numbers(load(written(tmp_path, SCORES, name), wanted="any")) == SCORES
    many = pd.DataFrame({"text": [f"text number {i}" for i in range(60)], "label": range(60)})
    assert len(numbers(load(many, wanted="any"))) == 60
    mixed = written(tmp_path, ["a", "b"] * 6, "label")
    assert load(mixed, wanted="any").classes == ("a", "b")
    with pytest.raises(UserError, match="or predict a number with --task regression"):
        load(written(tmp_path, SCORES))


@pytest.mark.parametrize("scores", [[*SCORES[:-1], 1e300], [float("-inf"), *SCORES[1:]]])
def test_a_number_that_nothing_can_be_learnt_from_is_refused(tmp_path: Path, scores: list[float]) -> None:
    with pytest.raises(UserError, match=r"more than 1e\+15: leave the row out"):
        load(written(tmp_path, scores), wanted="numbers")


@pytest.mark.parametrize("scores", [["high"] * 12, [*SCORES[:-1], "abc"]])
def test_what_is_no_number_is_refused_by_its_value(tmp_path: Path, scores: list[Any]) -> None:
    with pytest.raises(UserError, match=re.escape(f"{scores[-1]!r}, which is no number")):
        load(written(tmp_path, scores), wanted="numbers")


def test_a_limit_and_a_fingerprint_know_numbers(tmp_path: Path) -> None:
    whole, few = (load(written(tmp_path, SCORES), wanted="numbers", limit=limit) for limit in (None, 5))
    assert len(few.train) == 5
    assert few.train.numbers is not None
    assert few.train.numbers.tolist() == [SCORES[i] for i in few.train.ids.tolist()]
    assert load(written(tmp_path, SCORES[::-1]), wanted="numbers").fingerprint != whole.fingerprint


def test_an_underscore_makes_no_number(tmp_path: Path) -> None:
    """Python reads 1_0 as 10."""
    path = tmp_path / "rows.csv"
    path.write_text("text,score\na,1_0\nb,2.5\n")
    with pytest.raises(UserError, match="'1_0', which is no number"):
        load(path, wanted="numbers")


@pytest.mark.parametrize("column", ["numbers", "allowed"])
def test_what_one_split_lacks_is_not_lost_for_all(column: str) -> None:
    values: dict[str, Any] = {"numbers": np.zeros(2), "allowed": np.ones((2, 1), bool)}
    whole = Rows(["a", "b"], labels=[0, 0], **{column: values[column]})  # type: ignore[arg-type]
    bare = Rows(["c", "d"], labels=[0, 0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differ in what they hold"):
        Source("mixed", ("x",), whole, test=bare)
    nobody = ClientData("one", whole, whole.take(np.zeros(0, np.int64)), bare)
    with pytest.raises(UserError, match="differ in what they hold"):
        FederatedData("mixed", ("x",), [nobody], bare, bare, [])
    empty = Rows([], labels=[])  # type: ignore[arg-type]
    assert getattr(Rows.concatenate([empty, whole]), column) is not None
    assert Source("fine", ("x",), whole, test=empty).train is not None


def test_allowed_classes_are_as_many_as_there_are() -> None:
    rows = Rows(["a", "b"], labels=[0, 0], allowed=np.ones((2, 3), bool))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is of 3 classes, and there are 2"):
        Source("narrow", ("x", "y"), rows)


def test_stsb_is_a_set_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = (e for e in hub_sets.catalogue() if e.name == "stsb")
    table = {"sentence1": TEXTS, "sentence2": TEXTS, "label": np.array(SCORES, np.float32)}
    hidden = table | {"label": np.full(12, -1, np.float32)}
    found = {"train": table, "validation": table, "test": hidden}
    made = datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split, rows in found.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    for asked in (entry, unlisted("owner/scores")):
        assert numbers(from_hub(asked, wanted="any")) == SCORES  # as a site asks for it
    with pytest.raises(UserError, match="--task regression"):
        from_hub(unlisted("owner/scores"))
    source = from_hub(entry)
    assert numbers(source) == SCORES
    assert source.test is not None
    assert source.train.pairs is not None
    assert hub_sets.metrics_of("stsb") == ("pearson", "spearman")
