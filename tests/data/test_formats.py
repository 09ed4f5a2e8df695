"""What a file holds is what is read: headers, records, encodings and workbooks as other programs write them."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pyarrow
import pyarrow.parquet
import pytest

import command_line
from weft.data import Source, load
from weft.errors import UserError

TEXTS = [f"t {i}" for i in range(6)]
LABELS = ["pos", "neg"] * 3
FRAME = pandas.DataFrame({"text": TEXTS, "label": LABELS})


def read(path: Path, content: str | bytes | None = None, **columns: Any) -> Source:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(str(path), **columns)


def refusal(path: Path, content: str | bytes | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(path, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(source: Source) -> list[tuple[str, str]]:
    assert source.train.texts is not None
    return [(text, source.classes[y]) for text, y in zip(source.train.texts, source.train.labels.tolist(), strict=True)]


def said(source: Source, *fragments: str) -> bool:
    """Whether one note holds them all."""
    return any(all(fragment in note for fragment in fragments) for note in source.notes)


PLAIN = list(zip(TEXTS, LABELS, strict=True))


# columns ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.parquet", "rows.xlsx"])
@pytest.mark.parametrize("columns", [{}, {"text": "text", "label": "label"}])
def test_the_index_that_pandas_writes_is_left_out_and_said(file: str, columns: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / file
    shuffled = FRAME.sample(frac=1, random_state=1)
    if "parquet" in file:
        shuffled.to_parquet(path)
    elif "xlsx" in file:
        shuffled.to_excel(path)
    else:
        shuffled.to_csv(path, sep="\t" if "tsv" in file else ",")
    source = read(path, **columns)
    assert sorted(pairs(source)) == sorted(PLAIN)
    assert said(source, "has no name and holds whole numbers", "left out")


def test_columns_without_a_name_are_left_out_only_if_they_hold_nothing_of_use(tmp_path: Path) -> None:
    source = read(tmp_path / "last.csv", "text,label,\n" + "".join(f"{t},{y},{i}\n" for i, (t, y) in enumerate(PLAIN)))
    assert pairs(source) == PLAIN
    assert said(source, "column 3 has no name")
    source = read(tmp_path / "empty.csv", "text,label,,\n" + "".join(f"{t},{y},,\n" for t, y in PLAIN))
    assert pairs(source) == PLAIN
    assert said(source, "2 columns without a name and without a value (3, 4)")
    named = read(tmp_path / "words.csv", "label,\n" + "".join(f"{y},{t}\n" for t, y in PLAIN), text="column 2")
    assert pairs(named) == PLAIN
    assert said(named, 'a column without a name is called "column 2"')
    rows = [{"": i, "text": t, "label": y} for i, (t, y) in enumerate(PLAIN)]
    assert pairs(read(tmp_path / "rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows))) == PLAIN


def test_a_site_is_told_what_was_found_in_its_rows(tmp_path: Path) -> None:
    from weft.sites.joining import resident

    FRAME.to_csv(tmp_path / "rows.csv")
    told: list[str] = []
    resident({"name": "a", "data": str(tmp_path / "rows.csv"), "folder": str(tmp_path / "site")}, told.append)
    assert any("has no name" in line for line in told)


def test_blanks_around_the_names_of_columns_are_no_part_of_them(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": "text, label\n" + "".join(f"{t}, {y}\n" for t, y in PLAIN),
        "b.csv": " text ; label \n" + "".join(f"{t};{y}\n" for t, y in PLAIN),
        "c.csv": 'text, label\n"t, 0", "pos"\n"t 1", neg\n',
        "d.jsonl": "".join(json.dumps({" text": t, "label ": y}) + "\n" for t, y in PLAIN),
    }.items():
        source = read(tmp_path / name, content)
        assert (source.label_name, source.classes) == ("label", ("neg", "pos"))
        assert pairs(source) == ([("t, 0", "pos"), ("t 1", "neg")] if name == "c.csv" else PLAIN)
    assert load(str(tmp_path / "b.csv"), label=" label").label_name == "label"
    assert "two columns of the same name in its header (text)" in refusal(tmp_path / "twice.csv", "text,text ,label\na,b,c\n")


def test_columns_of_one_name_are_refused_in_every_format(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "two columns of the same name" in refusal(tmp_path / "a.parquet")
    line = '{"text": "a", "text": "b", "label": 1}\n'
    assert 'a.jsonl:2 can\'t be read as JSON ("text" stands in one object twice)' in refusal(tmp_path / "a.jsonl", "\n" + line)


# records ----------------------------------------------------------------------------------------------------------------


def test_a_stray_quotation_mark_swallows_no_row_of_a_tsv(tmp_path: Path) -> None:
    texts = [f'"t {i}' if i in (3, 17) else f't "{i}"' if i == 9 else f"t {i}" for i in range(40)]
    source = read(tmp_path / "rows.tsv", "text\tlabel\n" + "".join(f"{t}\t{i % 2}\n" for i, t in enumerate(texts)))
    assert source.train.texts == texts
    assert source.train.labels.tolist() == [i % 2 for i in range(40)]


def test_fields_of_a_tsv_may_be_quoted_within_a_line_and_not_across_lines(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ['say "hi"', "a\tb", '"', "plain"], "label": [0, 1, 0, 1]})
    frame.to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    assert read(tmp_path / "rows.tsv").train.texts == frame.text.to_list()
    sentence = refusal(tmp_path / "lines.tsv", 'text\tlabel\n"a\nb"\t1\nc\t0\n')
    assert "lines.tsv:2 has 1 field, but the header has 2: a field can't go on in the next line of a tsv file" in sentence


def test_a_csv_field_that_goes_on_in_the_next_line_is_said_with_the_line_on_which_it_begins(tmp_path: Path) -> None:
    lines = ["text,label", "a,0", '"b', "is, here", 'over",1', "c,0", '"d', 'e",1']
    source = read(tmp_path / "rows.csv", "\n".join(lines) + "\n")
    assert source.train.texts == ["a", "b\nis, here\nover", "c", "d\ne"]
    assert said(source, "2 rows (of 5 lines) have a quoted field that goes on in the next line, first in line 3")
    swallowed = read(tmp_path / "swallowed.csv", 'text,label\na,0\n"b,1\nc,0\nd",1\n')
    assert said(swallowed, "1 row (of 3 lines)", "first in line 3", "stray quotation mark")


def test_a_record_that_cannot_be_cut_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    rest = "".join(f"t,{i}\n" for i in range(50))
    assert "a.csv:3 is not readable as a table" in refusal(tmp_path / "a.csv", f'text,label\nb,1\n"c,1\n{rest}')
    assert "b.csv:4 has 3 fields" in refusal(tmp_path / "b.csv", 'text,label\n"b\nc",1\nd,e,1\n')
    assert "c.csv:6 has 3 fields" in refusal(tmp_path / "c.csv", "\nsep=;\n\ntext;label\nb;1\nd;e;1\n")


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n", "", "\ufeffsep=;\n"])
def test_semicolons_and_the_line_that_names_them_are_read(first: str, tmp_path: Path) -> None:
    body = 'text;label\n"good; very, very";pos\nbad;neg\n'
    assert pairs(read(tmp_path / "rows.csv", first + body)) == [("good; very, very", "pos"), ("bad", "neg")]


def test_a_delimiter_within_quoted_names_does_not_count(tmp_path: Path) -> None:
    content = '"text, long, longer";label\ngood;pos\nbad;neg\n'
    assert pairs(read(tmp_path / "rows.csv", content, text="text, long, longer")) == [("good", "pos"), ("bad", "neg")]


def test_a_header_in_the_middle_of_a_file_is_no_row(tmp_path: Path) -> None:
    block = "text,label\n" + "".join(f"{t},{y}\n" for t, y in PLAIN)
    source = read(tmp_path / "rows.csv", block + block)
    assert pairs(source) == PLAIN * 2
    assert said(source, "left out 1 row that only repeats the header")


# encodings --------------------------------------------------------------------------------------------------------------


def test_broken_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    lines = [
        r'{"text": "a \ud83d b \udc00", "label": "x"}',
        r'{"text": "c", "label": "\ud83d"}',
        r'{"text": "\ud83d\ude00", "label": "x"}',
    ]
    source = read(tmp_path / "rows.jsonl", "\n".join(lines))
    assert pairs(source) == [("a \ufffd b \ufffd", "x"), ("c", "\ufffd"), ("😀", "x")]
    assert said(source, "3 broken characters in 2 values replaced with \ufffd")
    assert source.fingerprint.encode()
    (tmp_path / "rows.json").write_text("[" + ",".join(lines) + "]")
    assert pairs(load(str(tmp_path / "rows.json"))) == pairs(source)


def test_a_text_of_another_encoding_is_read_if_it_says_so_and_else_refused_with_its_line(tmp_path: Path) -> None:
    content = "text,label\ncafé,1\nthé,0\n"
    for encoding in ("utf-8-sig", "utf-16"):
        assert read(tmp_path / "rows.csv", content.encode(encoding)).train.texts == ["café", "thé"]
    assert "is not UTF-8 text (line 2, byte 14)" in refusal(tmp_path / "rows.csv", content.encode("latin-1"))
    assert "holds a zero byte (line 1, byte 1)" in refusal(tmp_path / "rows.csv", content.encode("utf-16-le"))
    assert "can't be read" in refusal(tmp_path / "rows.csv.gz", gzip.compress(content.encode())[:-9])


def test_a_parquet_text_that_is_not_utf_8_is_one_sentence(tmp_path: Path) -> None:
    array = pyarrow.array([b"caf\xe9", b"tea"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": array, "label": [0, 1]}), tmp_path / "rows.parquet")
    assert "can't be read as parquet" in refusal(tmp_path / "rows.parquet")


def test_a_name_that_is_not_utf_8_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    name = os.fsdecode("données.csv".encode("latin-1"))
    FRAME.to_csv(folder / name, index=False)
    for path in (folder / name, folder):
        command_line.refused(command_line.weft(capsys, "data", path), 'donn\\udce9es.csv" is not UTF-8: rename it')


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" * 100_000, "too many objects in each other"),
        ('{"text": "a", "label": ' + "1" * 5000 + "}", "Exceeds the limit"),
        (r'{"\ud83d": 1, "\ud83d": 2}', "stands in one object twice"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_beyond_all_measure_is_one_sentence(name: str, content: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path / name, content)


# workbooks ----------------------------------------------------------------------------------------------------------------


def workbook(path: Path, *rows: list[Any]) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return book


def test_a_workbook_is_read_as_its_csv_would_be(tmp_path: Path) -> None:
    book = workbook(tmp_path / "rows.xlsx", ["text", " stars"], ["a", 1], [None, None], ["b", 2.0], [12, True], ["c", "#N/A"])
    book.active.cell(2, 4).number_format = "0.00"  # so that there is a cell
    book.save(tmp_path / "rows.xlsx")
    source = read(tmp_path / "rows.xlsx", label="stars")
    assert pairs(source) == [("a", "1"), ("b", "2"), ("12", "true")]
    assert said(source, "2 columns without a name and without a value (3, 4)")
    assert said(source, "1 cell with an error")
    assert said(source, "dropped 1 of 4 train rows")


def test_only_the_first_visible_sheet_of_a_workbook_is_read_and_others_are_said(tmp_path: Path) -> None:
    book = workbook(tmp_path / "rows.xlsx", ["text", "label"], *map(list, PLAIN))
    book.create_sheet("hidden", 0).sheet_state = "hidden"
    book.create_sheet("more").append(["text", "label"])
    book.save(tmp_path / "rows.xlsx")
    source = read(tmp_path / "rows.xlsx")
    assert pairs(source) == PLAIN
    assert said(source, 'the sheet "Sheet" is read; more is not')


def test_rows_beyond_the_size_that_a_workbook_states_are_read(tmp_path: Path) -> None:
    workbook(tmp_path / "right.xlsx", ["text", "label"], *map(list, PLAIN))
    with zipfile.ZipFile(tmp_path / "right.xlsx") as right, zipfile.ZipFile(tmp_path / "wrong.xlsx", "w") as wrong:
        for item in right.namelist():
            wrong.writestr(item, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:A1"', right.read(item)))
    assert pairs(read(tmp_path / "wrong.xlsx")) == PLAIN


def test_what_is_no_workbook_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "can't be read as an Excel workbook" in refusal(tmp_path / "a.xlsx", "no workbook")
    assert "old .xls file or has a password" in refusal(tmp_path / "b.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    workbook(tmp_path / "c.xlsx")
    assert "holds no rows" in refusal(tmp_path / "c.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in refusal(tmp_path / "a.xlsx")


def test_what_a_sentence_quotes_from_a_file_is_printable(tmp_path: Path) -> None:
    assert r"always \"x\x1b[31m\ny\"" in refusal(tmp_path / "a.csv", 'text,label\na,"x\x1b[31m\ny"\nb,"x\x1b[31m\ny"\n').replace(
        '"', '\\"'
    )
    source = read(tmp_path / "b.csv", 'text,label,\na,"x\ny",0\nb,"X\ny",1\n')
    assert said(source, r'"X\ny" (1 row) and "x\ny" (1 row) look alike')
    assert all(note.isprintable() for note in source.notes)
