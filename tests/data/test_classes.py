"""Classes and natural keys: one spelling whatever the file, two where a person wrote two, and a word where they look alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from weft.data import Rows, Source, load, partition
from weft.data.labels import UnknownLabel, declared
from weft.data.spelling import in_order, number, spelled
from weft.errors import UserError

COMPOSED, APART = "café", "cafe\u0301"


def csv(path: Path, labels: list[Any], **columns: list[Any]) -> str:
    frame = pandas.DataFrame({"text": [f"t {i}" for i in range(len(labels))], "label": [str(v) for v in labels]} | columns)
    frame.to_csv(path, index=False)
    return str(path)


def parquet(path: Path, labels: list[Any]) -> str:
    table = pyarrow.table({"text": [f"t {i}" for i in range(len(labels))], "label": labels})
    pyarrow.parquet.write_table(table, path)
    return str(path)


def classes(source: Source) -> list[str]:
    return [source.classes[y] for y in source.train.labels.tolist()]


def said(source: Source, *fragments: str) -> bool:
    return any(all(fragment in note for fragment in fragments) for note in source.notes)


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        *((v, v) for v in ("00501", "501", "1_0", "10", "+1", "1.00", "1e0", "٣", "0x1", "-", "nan", "inf", "1.5", "word", "-0")),
        *((v, "1") for v in (1, 1.0, "1", "1.0", " 1 ")),
        *((v, "-3") for v in (-3, -3.0, "-3.0")),
        (1e16, "10000000000000000"),
        ("1e+16", "10000000000000000"),
        *((v, "true") for v in (True, "True", "TRUE", "true")),
        *((v, "false") for v in (False, "False", "FALSE", "false")),
        *((v, None) for v in (None, "", " \u00a0", float("nan"))),
        (APART, COMPOSED),
        ("a\u00a0b", "a\u00a0b"),
        (0.5, "0.5"),
    ],
)
def test_a_value_has_one_spelling_whatever_else_a_file_holds(value: Any, spelling: str | None) -> None:
    assert spelled(value) == spelling
    assert spelling is None or spelled(spelling) == spelling


def test_only_what_round_trips_is_a_number() -> None:
    assert [number(v) for v in ("0", "-12", "007", "-0", "1.0", "", "-", "٣", "9" * 5000)] == [0, -12, *[None] * 7]
    assert in_order({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert in_order({"10", "9", "010"}) == ["010", "10", "9"]


@pytest.mark.parametrize("written", [["00501", "501"], ["1_0", "10"], ["07", "08"], ["1.00", "1"]])
def test_labels_keep_their_zeros_and_signs(written: list[str], tmp_path: Path) -> None:
    source = load(csv(tmp_path / "rows.csv", written * 5))
    assert source.classes == tuple(sorted(written))
    assert classes(source) == written * 5


def test_whole_floats_are_integers_across_the_files_of_one_set(tmp_path: Path) -> None:
    csv(tmp_path / "train.csv", ["0.0", "1.0"] * 5)
    csv(tmp_path / "test.csv", [0, 1])
    parquet(tmp_path / "validation.parquet", [1.0, 0.0])
    source = load(str(tmp_path))
    assert source.classes == ("0", "1")
    assert source.test is not None
    assert source.validation is not None
    assert source.test.labels.tolist() == [0, 1]
    assert source.validation.labels.tolist() == [1, 0]
    assert said(source, '"0" and "0.0" in column "label" are one class, "0"; so are 1')


def test_a_class_that_is_written_otherwise_than_it_is_called_is_said(tmp_path: Path) -> None:
    assert said(load(csv(tmp_path / "a.csv", ["1.1", "2.0"] * 5)), 'labels such as "2.0" in column "label" stand for "2"')
    assert not said(load(csv(tmp_path / "b.csv", ["1.1", APART] * 5)), "stand for")


def test_truth_values_are_the_same_in_every_format(tmp_path: Path) -> None:
    values = [True, False] * 4
    written = [
        csv(tmp_path / "a.csv", values),
        parquet(tmp_path / "b.parquet", values),
        csv(tmp_path / "c.csv", ["TRUE", "FALSE"] * 4),
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"t {i}", "label": v}) + "\n" for i, v in enumerate(values)))
    sources = [load(path) for path in [*written, str(tmp_path / "d.jsonl")]]
    assert {source.classes for source in sources} == {("false", "true")}
    assert len({source.fingerprint for source in sources}) == 1


def test_classes_that_unicode_composes_alike_are_one(tmp_path: Path) -> None:
    source = load(csv(tmp_path / "rows.csv", [COMPOSED, APART, "thé"] * 3))
    assert source.classes == (COMPOSED, "thé")
    assert source.train.labels.tolist() == [0, 0, 1] * 3
    assert said(source, f'"cafe\\u0301" and "{COMPOSED}"', "are one class")


def test_classes_and_declared_labels_meet_in_any_spelling(tmp_path: Path) -> None:
    source = load(csv(tmp_path / "rows.csv", [COMPOSED, "1.0", "00"] * 3))
    mapped = declared(source, ["00", "1", APART, "0"])
    assert mapped.classes == ("00", "1", APART, "0")
    assert mapped.train.labels.tolist() == [2, 1, 0] * 3
    exact = declared(Source("mine", (COMPOSED, APART), Rows(["a", "b"], None, [0, 1], [0, 1])), [APART, COMPOSED])  # type: ignore[arg-type]
    assert exact.train.labels.tolist() == [1, 0]
    with pytest.raises(UnknownLabel):
        declared(source, ["0", "1", COMPOSED])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["good", "good\u200b"], '"good" (5 rows) and "good\\u200b" (5 rows) look alike'),
        (["not good", "not\u00a0good"], '"not good" (5 rows) and "not\\xa0good" (5 rows) look alike'),
        (["good", "GOOD", "bad"], '"GOOD" (5 rows) and "good" (5 rows) look alike'),
        (["so  so", "so so"], "look alike"),
    ],
)
def test_classes_that_look_alike_stay_apart_and_are_said(labels: list[str], told: str, tmp_path: Path) -> None:
    source = load(csv(tmp_path / "rows.csv", labels * 5))
    assert sorted(source.classes) == sorted(labels)
    assert said(source, *told.split(" and "))
    assert not said(load(csv(tmp_path / "other.csv", ["good", "bad"] * 5)), "look alike")


def test_a_few_words_among_numbers_are_said(tmp_path: Path) -> None:
    assert said(load(csv(tmp_path / "a.csv", [0, 1] * 10 + ["unknown"])), 'holds numbers, but for "unknown" (1 row)')
    assert not said(load(csv(tmp_path / "b.csv", [0, "one"] * 10)), "holds numbers")


def test_a_name_is_no_empty_cell_of_the_companion_column(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 3, "label_name": (None, "b", "c")[i % 3]} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(tmp_path / "rows.jsonl")).classes == ("0", "1", "2")


# natural keys -----------------------------------------------------------------------------------------------------------


def hospitals(path: Path, keys: list[Any]) -> Source:
    return load(csv(path, [i % 2 for i in range(len(keys))], hospital=keys))


KEYS = ["a", "a", "1.0", "1.0", None, " ", "1", "1", "a", COMPOSED, APART, COMPOSED]


def test_rows_without_a_key_are_counted_and_no_client_is_called_none(tmp_path: Path) -> None:
    source = hospitals(tmp_path / "rows.csv", KEYS)
    assert source.train.keys == ["a", "a", "1", "1", "", "", "1", "1", "a", COMPOSED, COMPOSED, COMPOSED]
    assert said(source, "2 of 12 training rows have no hospital")
    assert said(source, '"hospital" is the natural client (3 of them')


def test_rows_without_a_key_are_left_out_of_a_natural_deal_or_dealt_apart(tmp_path: Path) -> None:
    source = hospitals(tmp_path / "rows.csv", KEYS)
    left = partition(source, clients=3)
    assert sorted(client.facts["domain"] for client in left.clients) == ["1", "a", COMPOSED]
    assert sum(len(c.train) + len(c.val) + len(c.test) for c in left.clients) == 10
    assert any("leaves the 2 training rows without a hospital out" in note for note in left.notes)
    apart = partition(source, clients=4, keyless="apart")
    assert sorted(client.facts["domain"] for client in apart.clients) == ["1", "a", COMPOSED, "no hospital"]
    assert sum(len(c.train) + len(c.val) + len(c.test) for c in apart.clients) == 12
    with pytest.raises(UserError, match="has 3 different values of hospital"):
        partition(source, clients=4, scheme="natural")
    with pytest.raises(UserError, match="choose leave-out or apart"):
        partition(source, clients=2, keyless="drop")


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "auto"])
def test_other_deals_use_rows_without_a_key(scheme: str, tmp_path: Path) -> None:
    source = hospitals(tmp_path / "rows.csv", KEYS)
    dealt = partition(source, clients=5 if scheme == "auto" else 2, scheme=scheme, alpha=100.0, min_rows=0)
    assert sum(len(c.train) + len(c.val) + len(c.test) for c in dealt.clients) == 12


def test_a_key_can_be_left_out_in_any_spelling_and_no_key_is_none(tmp_path: Path) -> None:
    source = hospitals(tmp_path / "rows.csv", KEYS)
    assert len(partition(source, clients=2, leave_out=APART).unseen[0].test) == 3
    with pytest.raises(UserError, match='has the hospital ""'):
        partition(source, clients=2, leave_out="")


def test_a_key_column_that_is_mostly_empty_is_not_guessed_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    assert hospitals(tmp_path / "few.csv", ["a", "b"] + [None] * 8).train.keys is None
    path = csv(tmp_path / "none.csv", [0, 1] * 3, ward=[None] * 6)
    with pytest.raises(UserError, match=r'column "ward" of none\.csv is empty in every training row'):
        load(path, key="ward")
