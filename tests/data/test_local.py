"""Local files: every format, the guessed columns, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from weft.data import Source, load, partition
from weft.errors import UserError

Objects = list[dict[str, Any]]
ROWS: Objects = [
    {"text": 'good, "really" good', "label": "pos"},
    {"text": "bad\nall over", "label": "neg"},
    {"text": "ገና ጥሩ — fine", "label": "pos"},
    {"text": "bad again", "label": "neg"},
]


def lines(rows: Objects) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: Path, rows: Objects) -> None:
    path.write_text(lines(rows), encoding="utf-8")


def write_lines_gz(path: Path, rows: Objects) -> None:
    path.write_bytes(gzip.compress(lines(rows).encode()))


def write_list(path: Path, rows: Objects) -> None:
    path.write_text(json.dumps(rows))


def write_wrapped(path: Path, rows: Objects) -> None:
    path.write_text(json.dumps({"version": 1, "data": rows}))


def write_columns(path: Path, rows: Objects) -> None:
    path.write_text(json.dumps({name: [row[name] for row in rows] for name in rows[0]}))


def write_separated(path: Path, rows: Objects, delimiter: str, encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Objects) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_excel(path: Path, rows: Objects) -> None:
    book = openpyxl.Workbook()
    for row in (rows[0].keys(), *(row.values() for row in rows)):
        book.active.append(list(row))
    book.save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_lines),
        ("rows.ndjson", write_lines),
        ("rows.jsonl.gz", write_lines_gz),
        ("rows.json", write_list),
        ("wrapped.json", write_wrapped),
        ("columns.json", write_columns),
        ("lines.json", write_lines),
        ("frame.json", lambda path, rows: pandas.DataFrame(rows).to_json(path)),
        ("rows.csv", lambda path, rows: write_separated(path, rows, ",")),
        ("bom.csv", lambda path, rows: write_separated(path, rows, ",", "utf-8-sig")),
        ("semicolons.csv", lambda path, rows: write_separated(path, rows, ";")),
        ("rows.parquet", write_parquet),
        ("rows.xlsx", write_excel),
    ],
)
def test_every_format_gives_the_same_rows(name: str, write: Callable[[Path, Objects], None], tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    source = load(str(tmp_path / name))
    assert list(source.train.texts) == [row["text"] for row in ROWS]
    assert source.classes == ("neg", "pos")
    assert source.train.labels.tolist() == [1, 0, 1, 0]
    assert source.train.ids.tolist() == [0, 1, 2, 3]
    assert source.test is None


def in_folder(folder: Path, **splits: Objects) -> Source:
    for split, rows in splits.items():
        write_lines(folder / f"{split}.jsonl", rows)
    return load(str(folder))


def test_a_folder_gives_train_test_and_validation_with_ids_of_their_own(tmp_path: Path) -> None:
    source = in_folder(tmp_path, train=ROWS, test=ROWS[:2], dev=ROWS[2:3])
    assert source.test is not None
    assert source.validation is not None
    assert (len(source.train), len(source.test), len(source.validation)) == (4, 2, 1)
    ids = [i for rows in (source.train, source.test, source.validation) for i in rows.ids.tolist()]
    assert len(set(ids)) == 7


def test_without_a_test_file_the_validation_file_is_the_test_set(tmp_path: Path) -> None:
    source = in_folder(tmp_path, train=ROWS, validation=ROWS[:2])
    assert source.test is not None
    assert len(source.test) == 2
    assert source.validation is None
    assert any("its validation split is the test set" in note for note in source.notes)


def test_shards_are_read_in_order_and_other_files_beside_train_are_left(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in (1, 0):
        write_parquet(tmp_path / "data" / f"train-0000{i}-of-00002.parquet", ROWS[2 * i : 2 * i + 2])
    assert list(load(str(tmp_path)).train.texts) == [row["text"] for row in ROWS]
    write_lines(tmp_path / "train.jsonl", ROWS[:3])
    write_lines(tmp_path / "train_more.jsonl", ROWS)
    assert len(load(str(tmp_path)).train) == 3


def test_hidden_test_labels_are_not_used_and_the_validation_split_takes_over(tmp_path: Path) -> None:
    numbered = [{"sentence": row["text"], "label": int(row["label"] == "pos")} for row in ROWS]
    hidden = [{**row, "label": -1} for row in numbered]
    source = in_folder(tmp_path, train=numbered, test=hidden, validation=numbered[:3])
    assert source.test is not None
    assert len(source.test) == 3
    assert any("the test split has no labels" in note for note in source.notes)


@pytest.mark.parametrize(
    ("row", "text", "pair", "label"),
    [
        ({"sentence": "a b", "label": 0, "idx": 3}, "a b", None, "label"),
        ({"premise": "a b", "hypothesis": "c d", "label": 0}, "a b", "c d", "label"),
        ({"question": "a b", "sentence": "c d", "label": 0}, "a b", "c d", "label"),
        ({"question1": "a b", "question2": "c d", "is": 1, "label": 0}, "a b", "c d", "label"),
        ({"text": "a b", "title": "c d", "category": "x"}, "a b", None, "category"),
        ({"Review": "a b", "Sentiment": "x"}, "a b", None, "Sentiment"),
        ({"remarks": "a b", "n": 4, "class": "x"}, "a b", None, "class"),
    ],
)
def test_columns_are_guessed_and_the_guess_is_said(
    row: dict[str, Any], text: str, pair: str | None, label: str, tmp_path: Path
) -> None:
    other = {name: (value + "z" if isinstance(value, str) else value + 1) for name, value in row.items()}
    source = in_folder(tmp_path, train=[row, other])
    assert source.train.texts[0] == text
    assert (source.train.pairs[0] if source.train.pairs else None) == pair
    assert source.train.labels.tolist() == [0, 1]
    (note,) = source.notes
    assert f'"{label}" is the label (--label)' in note
    assert "(--text" in note


def test_named_columns_go_before_the_guess(tmp_path: Path) -> None:
    rows = [{"text": "a b", "body": f"body {i}", "label": 0, "stars": i % 2, "who": f"u{i % 3}"} for i in range(6)]
    write_lines(tmp_path / "rows.jsonl", rows)
    source = load(str(tmp_path / "rows.jsonl"), text="body", label="stars", key="who", pair="text")
    assert source.train.texts[1] == "body 1"
    assert source.train.pairs is not None
    assert source.train.pairs[1] == "a b"
    assert source.train.labels.tolist() == [0, 1] * 3
    assert source.train.keys == ["u0", "u1", "u2"] * 2
    assert source.key_name == "who"
    assert source.notes == ()
    assert len(partition(source, clients=3).clients) == 3


def test_a_key_column_is_guessed_only_if_it_can_tell_clients_apart(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 2, "user": f"u{i}", "lang": f"l{i % 3}", "source": "x"} for i in range(12)]
    write_lines(tmp_path / "each.jsonl", [{k: v for k, v in row.items() if k != "lang"} for row in rows])
    assert load(str(tmp_path / "each.jsonl")).train.keys is None  # a user a row
    write_lines(tmp_path / "one.jsonl", [{k: v for k, v in row.items() if k not in ("lang", "user")} for row in rows])
    assert load(str(tmp_path / "one.jsonl")).train.keys is None  # one source for all
    write_lines(tmp_path / "some.jsonl", [{k: v for k, v in row.items() if k != "user"} for row in rows])
    source = load(str(tmp_path / "some.jsonl"))
    assert source.key_name == "lang"
    assert "(3 of them; --key)" in source.notes[0]


def test_classes_take_their_names_from_a_companion_column_and_their_order_from_the_numbers(
    tmp_path: Path,
) -> None:
    rows = [{"text": f"t {i}", "label": 10 - i % 3, "label_name": "abc"[i % 3]} for i in range(9)]
    source = in_folder(tmp_path, train=rows)
    assert source.classes == ("c", "b", "a")  # labels 8, 9, 10
    assert source.train.labels.tolist() == [2, 1, 0] * 3


def test_a_parquet_file_that_datasets_wrote_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["up", "down", "level"])})
    rows = {"text": [f"t {i}" for i in range(9)], "label": [i % 3 for i in range(9)]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "rows.parquet"))
    source = load(str(tmp_path / "rows.parquet"))
    assert source.classes == ("up", "down", "level")
    assert source.train.labels.tolist() == rows["label"]


def test_numbers_in_a_csv_are_ordered_as_numbers(tmp_path: Path) -> None:
    write_separated(tmp_path / "rows.csv", [{"text": f"t {i}", "label": i % 12} for i in range(48)], ",")
    source = load(str(tmp_path / "rows.csv"))
    assert source.classes == tuple(str(i) for i in range(12))


def test_rows_without_text_or_label_are_dropped_and_counted_and_ids_stay(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"text": "  ", "label": "pos"},
        {"text": "no label"},
        {"label": "neg"},
        {"text": "last", "label": "neg"},
    ]
    source = in_folder(tmp_path, train=rows)
    assert source.train.ids.tolist() == [0, 1, 2, 3, 7]
    assert any("dropped 3 of 8 train rows" in note for note in source.notes)


def test_a_class_or_key_that_only_the_test_set_has_is_said_and_kept(tmp_path: Path) -> None:
    train = [{**row, "lang": f"l{i % 2}"} for i, row in enumerate(ROWS)]
    test = [{"text": "new", "label": "odd", "lang": "l9"}, {**ROWS[0], "lang": "l0"}]
    source = in_folder(tmp_path, train=train, test=test)
    assert source.classes == ("neg", "odd", "pos")
    assert source.test is not None
    assert len(source.test) == 2
    assert any("never seen in training, only in other splits: odd" in note for note in source.notes)
    assert any("1 value of lang occurs only in the test split: l9" in note for note in source.notes)


def test_a_limit_draws_rows_by_seed_and_keeps_their_ids(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(200)]
    in_folder(tmp_path, train=rows, test=rows[:30])
    some, same, other = (load(str(tmp_path), limit=50, seed=seed) for seed in (1, 1, 2))
    assert some.test is not None
    assert (len(some.train), len(some.test)) == (50, 30)
    assert all(some.train.texts[j] == f"t {i}" for j, i in enumerate(some.train.ids.tolist()))
    assert some.train.ids.tolist() == same.train.ids.tolist() != other.train.ids.tolist()
    assert some.fingerprint == same.fingerprint != other.fingerprint
    assert load("pydocs", limit=60).fingerprint != load("pydocs").fingerprint
    assert sum(map(len, load("pydocs", limit=60).unseen.values())) == 60


def test_the_fingerprint_follows_the_rows_and_not_the_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_separated(tmp_path / "b.csv", ROWS, ",")
    write_lines(tmp_path / "c.jsonl", ROWS[::-1])
    prints = [load(str(tmp_path / name)).fingerprint for name in ("a.jsonl", "b.csv", "c.jsonl")]
    assert prints[0] == prints[1] != prints[2]


def refusal(path: Path | str, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(str(path), **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_or_an_unknown_name_is_one_sentence(tmp_path: Path) -> None:
    assert "there is no file or folder" in refusal(tmp_path / "none.csv")
    assert "there is no file or folder" in refusal("./surely-not-here")
    assert 'Did you mean "ag_news"?' in refusal("ag_new")
    assert "leaves nothing to learn" in refusal("pydocs", limit=1)


def test_a_file_without_a_label_or_text_column_lists_its_columns_and_the_flag(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a b", "score": 1}, {"text": "c d", "score": 2}])
    sentence = refusal(tmp_path / "a.jsonl")
    assert "text, score" in sentence
    assert "--label" in sentence
    write_lines(tmp_path / "b.jsonl", [{"one": "a b", "two": "c d", "label": 1}])
    sentence = refusal(tmp_path / "b.jsonl")
    assert "one, two, label" in sentence
    assert "--text" in sentence
    sentence = refusal(tmp_path / "a.jsonl", label="scores")
    assert "asked for by --label" in sentence
    assert 'Did you mean "score"?' in sentence


def test_a_test_file_that_lacks_the_columns_of_train_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", [{"text": "a", "topic": "pos"}])
    assert "the test rows" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n[1, 2]\n', "a.jsonl:3 is not an object"),
        ("a.json", '[{"text": "a"},\n {"text" "b"}]', "a.json:2 is not JSON"),
        ("a.json", '"text"', "holds no list of rows"),
        ("a.csv", 'text,label\na,1\n"b,2\n', "is not readable as a table"),
        ("a.csv", "text,label\na,1\nb\n", "a.csv:3 has 1 field, but the header has 2"),
        ("a.csv", "text,text\na,1\n", "two columns of the same name"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", "", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.parquet", "not parquet", "can't be read as parquet"),
        ("a.csv.gz", "not gzip", "can't be read"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "is not UTF-8"),
        ("a.csv", "text,label\na,1\nb,1\n", "has one class only"),
        ("a.csv", "text,label\na,0.5\nb,1.5\n", "'label' is"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0.5}\n{"text": "b", "label": 1}\n',
            "classification needs classes",
        ),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "not one class a row"),
        ("a.jsonl", '{"text": "", "label": 1}\n', "no training rows with text and label"),
        ("a.doc", "text", "Weft doesn't read a.doc"),
    ],
)
def test_an_unreadable_file_is_one_sentence_with_its_place(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if expected == "'label' is":  # in a csv all values are text, so 0.5 and 1.5 are two classes like any other
        assert load(str(tmp_path / name)).classes == ("0.5", "1.5")
    else:
        assert expected in refusal(tmp_path / name)


def test_a_truncated_gzip_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS * 500).encode())[:-20])
    assert "can't be read" in refusal(tmp_path / "a.jsonl.gz")


def test_a_column_with_as_many_values_as_rows_is_no_label(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": f"id {i}"} for i in range(50)])
    assert "50 different values, too many for a label" in refusal(tmp_path / "a.jsonl")


def test_folders_without_a_train_file_are_refused(tmp_path: Path) -> None:
    assert "holds no data file" in refusal(tmp_path)
    write_lines(tmp_path / "one.jsonl", ROWS)
    assert len(load(str(tmp_path)).train) == 4  # the only file is the training file
    write_lines(tmp_path / "two.jsonl", ROWS)
    assert "no file called train" in refusal(tmp_path)
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "train.json", ROWS)
    assert "several train files" in refusal(tmp_path)


def test_a_label_that_few_rows_have_is_not_the_one_that_is_guessed(tmp_path: Path) -> None:
    lines = [{"text": f"text {i}", "category": "ab"[i % 2], **({"label": "x"} if i < 5 else {})} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = load(str(tmp_path / "rows.jsonl"))
    assert (source.label_name, len(source.train)) == ("category", 20)


def test_an_answer_that_few_rows_have_is_not_the_one_that_is_learnt(tmp_path: Path) -> None:
    lines = [{"question": f"text {i}", "answer": f"so {i}", "solution": f"thus {i}" if i < 5 else None} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = load(str(tmp_path / "rows.jsonl"), wanted="answers")
    assert (source.train.answers or ())[7:9] == ["so 7", "so 8"]
    assert len(source.train) == 20
