"""Files of several tasks: what they name, how their rows come together, and what is wrong with them in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.data import load, partition, several
from weft.errors import UserError

DRUG, ILL = {"tags": ["B-Drug", "O"], "corpus": "a"}, {"tags": ["B-Ill"], "corpus": "b"}
WORDS = [row for i in range(6) for row in (DRUG | {"tokens": [f"drug{i}", "helps"]}, ILL | {"tokens": [f"ill{i}"]})]
CLASSES = [{"text": f"text {i}", "label": ("good", "bad")[i % 2]} for i in range(10)]
PAIRS = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(9)]


def write(folder: Path, name: str, rows: Sequence[Any], split: str = "train") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "ner", WORDS)
    write(tmp_path, "mood", CLASSES)
    write(tmp_path, "mood", CLASSES[:4], "test")
    write(tmp_path, "pairs", PAIRS)
    return tmp_path


def file(folder: Path, text: str) -> str:
    (folder / "tasks.toml").write_text(text)
    return str(folder / "tasks.toml")


THREE = """
[drugs]
data = "ner"
clients = ["x", "y"]
[mood]
data = "mood"
clients = ["y"]
[pairs]
data = "pairs"
"""


def test_classes_of_all_tasks_lie_one_after_another_and_a_row_may_have_those_of_its_own(folder: Path) -> None:
    source = load(file(folder, THREE))
    assert source.classes == (
        "drugs/O", "drugs/B-Drug", "drugs/B-Ill", "mood/bad", "mood/good", "pairs/0", "pairs/1", "pairs/2",
    )  # fmt: skip
    assert several.tasks_of(source.classes) == {"drugs": (0, 3), "mood": (3, 5), "pairs": (5, 8)}
    rows = source.train
    assert rows.tasks is not None
    assert rows.allowed is not None
    assert rows.tags is not None
    assert rows.words is not None
    for i, task in enumerate(rows.tasks):
        first, end = several.tasks_of(source.classes)[task]
        if task == "drugs":
            assert len(rows.words[i]) == len(rows.tags[i]) > 0
            assert set(np.flatnonzero(rows.allowed[i]).tolist()) <= set(range(first, end))
        else:
            assert not rows.words[i]
            assert not len(rows.tags[i])
            assert np.flatnonzero(rows.allowed[i]).tolist() == list(range(first, end))
        assert first <= rows.labels[i] < end
    assert rows.pairs is not None
    assert {bool(p) for p, t in zip(rows.pairs, rows.tasks, strict=True) if t == "pairs"} == {True}
    assert {bool(p) for p, t in zip(rows.pairs, rows.tasks, strict=True) if t != "pairs"} == {False}
    assert len(set(rows.ids.tolist()) | set(source.test.ids.tolist())) == len(rows) + len(source.test)  # type: ignore[union-attr,arg-type]


def test_what_some_tasks_lack_is_drawn_from_their_training_rows(folder: Path) -> None:
    source = load(file(folder, THREE))
    assert source.test is not None
    assert source.test.tasks is not None
    assert set(source.test.tasks) == {"drugs", "mood", "pairs"}
    assert source.test.tasks.count("mood") == 4
    assert source.validation is None
    assert any("pairs: has no test split" in note for note in source.notes)
    for task, every in (("drugs", 12), ("pairs", 9)):
        assert source.train.tasks is not None
        assert source.train.tasks.count(task) + source.test.tasks.count(task) == every


def test_rows_are_dealt_out_among_those_who_have_the_task(folder: Path) -> None:
    source = load(file(folder, THREE))
    dealt = partition(source, clients=3, scheme="natural", seed=0, val_fraction=0.0)
    found = {client.facts["domain"]: several.of_client(client) for client in dealt.clients}
    assert found.keys() == {"x", "y", "pairs"}
    assert found["x"].keys() == {"drugs"}
    assert found["y"].keys() == {"drugs", "mood"}
    assert found["pairs"].keys() == {"pairs"}
    assert sum(own.get("drugs", 0) for own in found.values()) == len([t for t in source.train.tasks or () if t == "drugs"])


def test_one_natural_key_is_a_task_with_its_own_classes(folder: Path) -> None:
    text = '[one]\ndata = "ner"\nonly = "a"\n[two]\ndata = "ner"\nonly = "b"\nlimit = 4\n'
    source = load(file(folder, text))
    assert source.classes == ("one/O", "one/B-Drug", "two/O", "two/B-Ill")
    assert (source.train.tasks or []).count("two") == 4
    with pytest.raises(UserError, match=r'only = "c", and the rows of ner have a, b'):
        load(file(folder, '[one]\ndata = "ner"\nonly = "c"\n'))


def test_facts_count_training_rows_and_name_tasks_that_are_only_tested() -> None:
    tasks = ["a", "b", "a", "c"]
    assert several.facts(tasks, np.array([0, 2, 1]), (np.array([3]),)) == {"a": 2, "b": 1, "c": 0}
    assert several.facts(tasks, np.array([], dtype=np.int64)) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no tasks"),
        ("x = 3", "names no tasks"),
        ("[a", "can't be read"),
        ('["a/b"]\ndata = "ner"', "can't be called so"),
        ('["a:b"]\ndata = "ner"', "can't be called so"),
        ("[a]", r"\[a\].*data field required"),
        ('[a]\ndata = "ner"\ncolumn = "x"', r"column is no setting of a task"),
        ('[a]\ndata = "ner"\nlimit = 1', "limit"),
        ('[a]\ndata = "ner"\nclients = []', "clients"),
        ('[a]\ndata = "nowhere"', r"\[a\] in .*no data set called"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(folder: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as e:
        load(file(folder, text))
    assert "\n" not in str(e.value)


def test_columns_of_one_file_are_named_in_it_and_not_beside_it(folder: Path) -> None:
    with pytest.raises(UserError, match="fixed columns"):
        load(file(folder, THREE), text="text")
    source = load(file(folder, '[a]\ndata = "pairs"\ntext = "hypothesis"\n[b]\ndata = "mood"\n'))
    assert source.train.pairs is None


def test_pictures_and_numbers_are_no_tasks_among_several(folder: Path) -> None:
    with pytest.raises(UserError, match="neither sentences with classes nor tagged words"):
        load(file(folder, '[a]\ndata = "glyphs"\n[b]\ndata = "mood"\n'))
