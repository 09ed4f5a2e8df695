"""Folders of tables as programs leave them: which file is which split, what is missing, and what is not read."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas
import pytest

from weft.data import Source, load
from weft.errors import UserError


def frame(n: int = 6, first: int = 0) -> pandas.DataFrame:
    rows = range(first, first + n)
    return pandas.DataFrame({"text": [f"t {i}" for i in rows], "label": [("pos", "neg")[i % 2] for i in rows]})


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(source: Source, *fragments: str) -> bool:
    return any(all(fragment in note for fragment in fragments) for note in source.notes)


@pytest.mark.parametrize("name", ["test.csv", "validation.csv", "test-00000-of-00001.csv"])
def test_a_test_file_alone_is_not_trained_on(name: str, tmp_path: Path) -> None:
    frame().to_csv(tmp_path / name, index=False)
    assert f"file alone ({name}): add one called train" in refusal(tmp_path)
    assert len(load(str(tmp_path / name)).train) == 6  # a file is a file
    frame().to_csv(tmp_path / "train.csv", index=False)
    assert load(str(tmp_path)).test is not None


def test_a_test_file_without_labels_is_set_aside_and_said(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "train.csv", index=False)
    frame().drop(columns="label").to_csv(tmp_path / "test.csv", index=False)
    frame().drop(columns="text").to_csv(tmp_path / "sample_submission.csv", index=False)
    source = load(str(tmp_path))
    assert source.test is None
    assert len(source.train) == 6
    assert said(source, "the test split has no labels and is not used")
    assert said(source, "train.csv, test.csv are read; sample_submission.csv is not")
    frame().rename(columns={"label": "topic"}).to_csv(tmp_path / "test.csv", index=False)
    assert "the test rows of" in refusal(tmp_path)


def test_a_class_called_minus_one_is_hidden_only_where_training_rows_do_not_have_it(tmp_path: Path) -> None:
    frame().assign(label=[-1, 1] * 3).to_csv(tmp_path / "train.csv", index=False)
    frame(2).assign(label=[-1, -1]).to_csv(tmp_path / "test.csv", index=False)
    source = load(str(tmp_path))
    assert source.classes == ("-1", "1")
    assert source.test is not None
    frame().assign(label=[0, 1] * 3).to_csv(tmp_path / "train.csv", index=False)
    frame(3).assign(label=[-1, None, -1]).to_csv(tmp_path / "test.csv", index=False)
    assert said(load(str(tmp_path)), "the test split has no labels")


@pytest.mark.parametrize("place", ["", "default", "data"])
def test_shards_in_folders_of_splits_are_read(place: str, tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        folder = tmp_path / place / split
        folder.mkdir(parents=True)
        for shard in (1, 0):
            frame(4, first + 4 * shard).to_parquet(folder / f"000{shard}.parquet", index=False)
    source = load(str(tmp_path))
    assert source.train.texts == [f"t {i}" for i in range(8)]
    assert source.test is not None
    assert source.test.texts == [f"t {i}" for i in range(100, 108)]


def test_a_shard_that_is_missing_or_differs_in_its_columns_is_noticed(tmp_path: Path) -> None:
    for shard in (0, 2):
        frame(4).assign(hospital="abcd"[shard]).to_parquet(tmp_path / f"train-0000{shard}-of-00003-0fa1.parquet", index=False)
    assert "lacks 1 of the 3 files of its train split (number 1)" in refusal(tmp_path)
    frame(4).to_parquet(tmp_path / "train-00001-of-00003-0fa1.parquet", index=False)
    source = load(str(tmp_path))
    assert len(source.train) == 12
    assert said(source, "train-00001-of-00003-0fa1.parquet lacks hospital")


def test_what_macos_keeps_beside_files_is_passed_over(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "~$rows.xlsx").write_bytes(b"who has it open")
    (tmp_path / "._rows.csv").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xff")
    assert len(load(str(tmp_path)).train) == 6
    (tmp_path / "rows.csv").rename(tmp_path / "train.csv")
    (tmp_path / "._rows.csv").rename(tmp_path / "._train.csv")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    source = load(str(tmp_path))
    assert len(source.train) == 6
    assert not said(source, "not")


def test_what_datasets_saved_to_disk_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["up", "down"])})
    rows = datasets.Dataset.from_dict({"text": [f"t {i}" for i in range(6)], "label": [0, 1] * 3}, features)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(tmp_path / "both")
    one, both = load(str(tmp_path / "one")), load(str(tmp_path / "both"))
    for source in (one, both):
        assert source.classes == ("up", "down")
        assert source.train.labels.tolist() == [0, 1] * 3
    assert one.test is None
    assert both.test is not None
    assert len(both.test) == 2
    assert not said(one, "hub")
    (tmp_path / "both" / "test" / "state.json").write_text("{}")
    assert "can't be read as a set that datasets saved" in refusal(tmp_path / "both")


def test_a_saved_set_whose_only_split_is_for_testing_is_split_and_said(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_pandas(frame())
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "set")
    source = load(str(tmp_path / "set"))
    assert len(source.train) == 6
    assert source.test is None  # never the rows that are trained on
    assert said(source, "has a test split alone, from which rows for training and testing are drawn")


def test_a_column_that_names_training_and_other_rows_is_obeyed(tmp_path: Path) -> None:
    frame().assign(split=["train", "train", "test", "test", "dev", "train"]).to_csv(tmp_path / "rows.csv", index=False)
    source = load(str(tmp_path / "rows.csv"))
    assert source.train.texts == ["t 0", "t 1", "t 5"]
    assert source.test is not None
    assert source.test.texts == ["t 2", "t 3"]
    assert said(source, "a column tells the split of a row")
    for other in (["test"] * 6, ["train", "upper"] * 3):
        frame().assign(split=other).to_csv(tmp_path / "rows.csv", index=False)
        assert len(load(str(tmp_path / "rows.csv")).train) == 6
