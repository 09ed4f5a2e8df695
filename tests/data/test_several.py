"""Files of several tasks: what they name, how their rows come together, and what is wrong with them in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.data import load, partition, several
from weft.data.rows import ClientData
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
            own = "drugs/B-Drug" if "drug" in rows.words[i][0] else "drugs/B-Ill"
            assert np.flatnonzero(rows.allowed[i]).tolist() == [0, source.classes.index(own)], "those of its corpus"
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
    assert source.notes[:3] == (
        "tasks: 3 tasks: drugs (3 classes, 12 rows), mood (2 classes, 10 rows), pairs (3 classes, 9 rows).",
        "drugs: has no test split, and other tasks do; rows for it are drawn from the training rows.",
        "pairs: has no test split, and other tasks do; rows for it are drawn from the training rows.",
    )
    said = {tuple(note.split(": ")[:2]) for note in source.notes[3:]}
    assert said == {("drugs", "ner"), ("mood", "mood"), ("pairs", "pairs")}, "what is said of the data of each"
    for task, every in (("drugs", 12), ("pairs", 9)):
        assert source.train.tasks is not None
        assert source.train.tasks.count(task) + source.test.tasks.count(task) == every


def test_a_task_that_nobody_is_tested_on_is_named(folder: Path) -> None:
    write(folder, "few", CLASSES[:3])
    said = "tasks: there are no test rows of b, so that scores are of the other tasks alone."
    for data, told in (("few", [said]), ("pairs", [])):
        source = load(file(folder, f'[a]\ndata = "ner"\n[b]\ndata = "{data}"\n'))
        assert [note for note in partition(source, clients=2).notes if "no test rows" in note] == told


def test_no_row_and_none_that_equals_it_is_in_two_of_the_splits_that_are_drawn(folder: Path) -> None:
    """A fifth of the training rows for a test, and a tenth of what is left for validation."""
    write(folder, "mood", CLASSES[4:7], "validation")
    write(folder, "many", [{"text": f"text {i // 3}", "label": "xy"[i // 3 % 2]} for i in range(300)])
    source = load(file(folder, '[many]\ndata = "many"\n[mood]\ndata = "mood"\n'))
    splits = (source.train, source.test, source.validation)
    own = [[text for text, task in zip(s.texts or (), s.tasks or (), strict=True) if task == "many"] for s in splits if s]
    assert [len(some) for some in own] == [216, 60, 24]
    assert [len(set(some)) for some in own] == [72, 20, 8]
    assert len(set().union(*own)) == 100
    assert source.validation is not None
    assert (source.validation.tasks or []).count("mood") == 3


def test_rows_are_dealt_out_among_those_who_have_the_task(folder: Path) -> None:
    source = load(file(folder, THREE))
    dealt = partition(source, clients=3, scheme="natural", seed=0, val_fraction=0.0)
    found = {client.facts["domain"]: several.of_client(client) for client in dealt.clients}
    assert found.keys() == {"x", "y", "pairs"}
    assert found["x"].keys() == {"drugs"}
    assert found["y"].keys() == {"drugs", "mood"}
    assert found["pairs"].keys() == {"pairs"}
    drugs = (source.train.tasks or []).count("drugs")
    assert sorted(own["drugs"] for name, own in found.items() if name in "xy") == [drugs // 2, drugs - drugs // 2]


def test_clients_of_a_file_who_become_one_are_told(folder: Path) -> None:
    said = "tasks has 3 values of client, dealt to 2 clients, some of whom have several; --clients 3 keeps them apart."
    source = load(file(folder, THREE))
    assert said in partition(source, clients=2).notes
    assert not [note for note in partition(source, clients=3).notes if "some of whom have several" in note]


def test_columns_that_can_not_be_told_are_settings_of_the_task_and_no_other_task_is_proposed(folder: Path) -> None:
    write(folder, "stars", [{"text": f"text {i}", "score": i / 7} for i in range(20)])
    write(folder, "told", [{"words": f"text {i}", "many": f"some {i}", "label": i % 2} for i in range(20)])
    for text, lacking in (
        ('[a]\ndata = "stars"\n', "no column that looks like a label; its columns are text, score"),
        ('[a]\ndata = "stars"\nlabel = "score"\n', "holds numbers such as 0.142857, and classification needs classes"),
        ('[a]\ndata = "told"\n', "no column that looks like its text"),
    ):
        with pytest.raises(UserError, match=r'as in label = "COLUMN"; a task tells classes apart or tags words') as caught:
            load(file(folder, text))
        assert lacking in str(caught.value)
        assert "--" not in str(caught.value)


def test_one_natural_key_is_a_task_with_its_own_classes(folder: Path) -> None:
    text = '[one]\ndata = "ner"\nonly = "a"\n[two]\ndata = "ner"\nonly = "b"\nlimit = 4\n'
    source = load(file(folder, text))
    assert source.classes == ("one/O", "one/B-Drug", "two/O", "two/B-Ill")
    assert (source.train.tasks or []).count("two") == 4
    with pytest.raises(UserError, match=r'only = "c", and the rows of ner have a, b'):
        load(file(folder, '[one]\ndata = "ner"\nonly = "c"\n'))
    with pytest.raises(UserError, match='no natural keys: name their column with key = "COLUMN", or leave only out'):
        load(file(folder, '[one]\ndata = "mood"\nonly = "c"\n'))


def test_of_a_natural_key_there_are_the_test_rows_too_and_the_classes_of_its_training_rows_alone(folder: Path) -> None:
    told = [("u", "ann"), ("v", "bob"), ("w", "ann"), ("u", "bob"), ("u", "")] * 5
    write(folder, "keyed", [{"text": f"train {i}", "label": label, "client": who} for i, (label, who) in enumerate(told)])
    told = [("u", "ann"), ("v", "ann"), ("w", "bob"), ("w", "ann")]
    write(folder, "keyed", [{"text": f"test {i}", "label": label, "client": who} for i, (label, who) in enumerate(told)], "test")
    text = '[one]\ndata = "keyed"\nkey = "client"\nonly = "{}"\n'
    source = load(file(folder, text.format("ann")))
    assert source.notes[0] == "tasks: 1 task: one (2 classes, 10 rows)."
    assert source.test is not None
    assert source.classes == ("one/u", "one/w")
    assert (source.train.texts, source.test.texts) == ([f"train {i}" for i in range(25) if i % 5 in (0, 2)], ["test 0", "test 3"])
    assert [source.classes[i] for i in source.test.labels] == ["one/u", "one/w"]
    with pytest.raises(UserError, match=r'only = "bobb", and the rows of keyed have ann, bob\. Did you mean "bob"\?'):
        load(file(folder, text.format("bobb")))
    assert load(file(folder, text.format("bob"))).test is None, "its one test row is of a class that it does not train"
    both = load(file(folder, text.format("bob") + '[mood]\ndata = "mood"\n'))
    assert both.test is not None
    assert "one" in (both.test.tasks or ()), "then test rows are drawn, as for a task without any"


def test_test_rows_with_a_tag_that_a_natural_key_does_not_train_are_left_out(folder: Path) -> None:
    other = {"tokens": ["drug1", "ill1"], "tags": ["B-Drug", "B-Ill"], "corpus": "a"}
    write(folder, "ner", [DRUG | {"tokens": ["drug0", "helps"]}, other], "test")
    source = load(file(folder, '[one]\ndata = "ner"\nonly = "a"\n'))
    assert source.test is not None
    assert [list(words) for words in source.test.words or ()] == [["drug0", "helps"]]


def test_facts_count_training_rows_and_name_tasks_that_are_only_tested() -> None:
    tasks = ["a", "b", "a", "c"]
    assert several.facts(tasks, np.array([0, 2, 1]), (np.array([3]),)) == {"a": 2, "b": 1, "c": 0}
    assert several.facts(tasks, np.array([], dtype=np.int64)) == {}


def test_a_client_names_the_tasks_that_it_is_only_tested_on(folder: Path) -> None:
    rows = load(file(folder, THREE)).train
    of = {task: np.array([other == task for other in rows.tasks or ()]) for task in ("drugs", "mood", "pairs")}
    client = ClientData("c", train=rows.take(of["mood"]), val=rows.take(of["pairs"]), test=rows.take(of["drugs"]))
    assert several.of_client(client) == {"drugs": 0, "mood": 10, "pairs": 0}


def test_names_of_classes_are_of_a_task_and_of_its_own() -> None:
    assert several.tasks_of(("a/x", "a/y/z", "b/x")) == {"a": (0, 2), "b": (2, 3)}
    for odd in ("a/", "/x", "x"):
        with pytest.raises(UserError, match="are called TASK/CLASS"):
            several.tasks_of(("a/x", odd))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no tasks"),
        ("x = 3", "names no tasks"),
        ("[a", "can't be read"),
        ('["a/b"]\ndata = "ner"', "can't be called so"),
        ('["a:b"]\ndata = "ner"', "can't be called so"),
        ('[" "]\ndata = "ner"', "can't be called so"),
        ("[a]", r"\[a\].*data is missing: it says what"),
        ('[a]\ndata = "ner"\ncolumn = "x"', r"column is no setting of a task"),
        ('[a]\ndata = "ner"\nlimit = 1', "limit is 1, but must be at least 2.$"),
        ('[a]\ndata = "ner"\nlimit = "x"', 'limit is "x", but must be a whole number.$'),
        ('[a]\ndata = "ner"\nlimit = 2.0', "limit is 2.0, but must be a whole number.$"),
        ('[a]\ndata = "ner"\nclients = []', r"clients is \[\], but must be a list of at least one name.$"),
        ('[a]\ndata = "ner"\nclients = "x"', 'clients is "x", but must be a list of names.$'),
        ('[a]\ndata = "ner"\nclients = ["x", 3]', "clients.1 is 3, but must be a text.$"),
        ('[a]\ndata = ""', 'data is "", but must be a name.$'),
        ('[a]\ndata = "tasks.toml"', r"\[a\].*tasks.toml is a file of tasks itself: write its tasks into this one.$"),
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
