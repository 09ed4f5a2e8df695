"""Damaged tables: refused in a sentence, or read with every row and class that a simple count finds, or with a note."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.data import Source, load
from weft.errors import UserError, printable

TEXTS = (
    "good",
    "so, so",
    'say "hi"',
    "two\nlines",
    " blank ",
    "ümlaut café",
    "cafe\u0301",
    "tab\there",
    "😀 end",
    "a;b|c",
    '"',
    "",
    "''",
)
CLASSES = (
    *(
        ["pos", "neg"],
        ["0", "1"],
        ["0.0", "1.0", "0"],
        ["00501", "501"],
        ["True", "true", "False"],
        ["café", "cafe\u0301", "thé"],
    ),
    *(["good", "GOOD", "good\u00a0 x", "good x"], ["1_0", "10", "-1"], ["$", "$$"], ["label", "a,b", 'q"q', "x\ny"], ["a", ""]),
)
SPLICES = (
    b'"',
    b'""',
    b",",
    b";",
    b"\t",
    b"|",
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"\xe9",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b" ",
    b"\\",
)
JSON_SPLICES = (b"\\ud83d", b"\\udc00", b"{", b"}", b"[", b"null", b"1e999", b"NaN", b"\\u0000", b'"label": 1, ', b"9" * 40)
Rows = list[list[str]]


def one(rng: random.Random, folder: Path) -> str:
    """Write, damage, read, compare."""
    kind = rng.choice(["csv", "csv", "csv", "tsv", "tsv", "jsonl", "jsonl", "json", "csv.gz", "xlsx"])
    delimiter = "\t" if kind == "tsv" else rng.choice(",,;\t|")
    header, rows = _table(rng)
    data = _damaged(rng, _written(rng, folder, kind, delimiter, header, rows), kind)
    path = folder / f"rows.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "csv.gz" and rng.random() < 0.9 else data)
    try:
        source = load(str(path), one_class=rng.random() < 0.9, **rng.choice([{}, {"text": "text", "label": "label"}]))
    except UserError as refusal:
        sentence = str(refusal)
        assert sentence.isprintable(), sentence
        assert sentence[-1] in ".?", sentence
        return f"{kind}: refused"
    if kind != "xlsx":
        _compare(source, *_counted(data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"), kind))
    return f"{kind}: read with notes" if len(source.notes) > 1 else f"{kind}: read"


def _table(rng: random.Random) -> tuple[list[str], Rows]:
    classes = rng.choice(CLASSES)
    n = rng.randint(1, 25)
    rows = [[rng.choice(TEXTS) + rng.choice(["", f" {i}"]), rng.choice(classes), rng.choice("abc ")] for i in range(n)]
    header = ["text", "label", "hospital"]
    if rng.random() < 0.2:
        header, rows = ["", *header], [[str(i), *row] for i, row in enumerate(rows)]
    if rng.random() < 0.1:
        header, rows = [*header, "", ""], [[*row, "", ""] for row in rows]
    return header, rows


def _written(rng: random.Random, folder: Path, kind: str, delimiter: str, header: list[str], rows: Rows) -> bytes:
    if kind == "xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for row in [header, *rows]:
            book.active.append(row)
        book.save(folder / "whole.xlsx")
        return (folder / "whole.xlsx").read_bytes()
    if kind in ("json", "jsonl"):
        objects = [dict(zip(header, row, strict=True)) for row in rows]
        if kind == "json":
            return json.dumps(objects, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in objects).encode()
    end, quote = rng.choice(["\n", "\r\n", "\r"]), rng.choice(["always", "needed", "needed", "never"])
    space = " " if kind != "tsv" and rng.random() < 0.1 else ""

    def field(value: str) -> str:
        if quote == "never":
            return value
        needed = any(c in value for c in f'"\n\r{delimiter}')
        return '"' + value.replace('"', '""') + '"' if needed or quote == "always" else value

    first = f"sep={delimiter}{end}" if rng.random() < 0.1 else ""
    text = first + "".join((delimiter + space).join(map(field, row)) + end for row in [header, *rows])
    return text.encode(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]))


def _damaged(rng: random.Random, data: bytes, kind: str) -> bytes:
    splices = SPLICES + (JSON_SPLICES if "json" in kind else ())

    def flip(at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]

    def splice(at: int) -> bytes:
        return data[:at] + rng.choice(splices) + data[at:]

    def cut(at: int) -> bytes:
        return data[:at] + data[at + rng.randint(1, 12) :]

    def end(at: int) -> bytes:
        return data[:at]

    def repeat(at: int) -> bytes:
        lines = data.splitlines(keepends=True)
        i = rng.randrange(len(lines))
        return b"".join([*lines[:i], lines[i] * 2, *lines[i + 1 :]])

    def twice(at: int) -> bytes:
        return data + data

    changes: list[Callable[[int], bytes]] = [flip, splice, splice, splice, cut, cut, end, repeat, twice]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if data:
            data = rng.choice(changes)(rng.randrange(len(data)))
    return data


# a count that shares nothing with what is tested ------------------------------------------------------------------------


def _counted(text: str, kind: str) -> tuple[list[dict[str, Any]], int]:
    """Every row, and how many of them take several lines."""
    if "json" in kind:
        try:
            found = json.loads(text)
        except ValueError:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        objects = found if isinstance(found, list) else [found]
        columns = list(dict.fromkeys(name for row in objects for name in row))
        called = {name: _name(name, i) for i, name in enumerate(columns, 1)}
        return [{called[name]: value for name, value in row.items()} for row in objects], 0
    lines = [line for line in re.split("\r\n|\r|\n", text) if line]
    told = re.fullmatch(r'"?sep=(.)"?[ \t]*', lines[0], re.IGNORECASE)
    if told:
        text, lines = text[text.index(lines[0]) + len(lines[0]) :], lines[1:]
    bare = re.sub('"[^"]*"', "", lines[0])
    delimiter = told.group(1) if told else "\t" if kind == "tsv" else max(",;\t|", key=bare.count)
    if kind == "tsv":
        records = [(_tabbed(line, delimiter, lines[0].count(delimiter) + 1), 1) for line in lines]
    else:
        records = _records(text, delimiter, bare.count(delimiter) == bare.count(delimiter + " ") > 0)
    header = [_name(name, i) for i, name in enumerate(records[0][0], 1)]
    return [dict(zip(header, row, strict=True)) for row, _ in records[1:]], sum(lines > 1 for _, lines in records[1:])


def _name(given: str, position: int) -> str:
    """What a column is called."""
    return given.strip().strip("\ufeff").strip() or f"column {position}"


def _tabbed(line: str, delimiter: str, width: int) -> list[str]:
    plain = line.split(delimiter)
    if len(plain) != width:
        return _records(line, delimiter, False)[0][0]
    whole = [re.fullmatch('"((?:[^"]|"")*)"', field) for field in plain]
    return [field if m is None else m.group(1).replace('""', '"') for field, m in zip(plain, whole, strict=True)]


def _records(text: str, delimiter: str, spaced: bool) -> list[tuple[list[str], int]]:
    """Fields of each record, and on how many lines it stands, by going through the text character by character."""
    records: list[tuple[list[str], int]] = []
    fields: list[str] = []
    field, quoted, closed, begun, lines, i = "", False, False, False, 1, 0
    text = re.sub("\r\n|\r", "\n", text) + ("" if text.endswith(("\n", "\r")) else "\n")
    while i < len(text):
        c = text[i]
        i += 1
        if quoted:
            if c == '"' and text[i : i + 1] == '"':
                field, i = field + c, i + 1
            elif c == '"':
                quoted, closed = False, True
            else:
                field, lines = field + c, lines + (c == "\n")
        elif c == "\n":
            if fields or field or closed:
                records.append(([*fields, field], lines))
            fields, field, closed, begun, lines = [], "", False, False, 1
        elif c == delimiter:
            fields, field, closed, begun = [*fields, field], "", False, False
        elif c == '"' and not begun:
            quoted = begun = True
        elif spaced and c == " " and not begun:
            continue
        else:
            assert not closed, "something stands behind a closing quotation mark"
            field, begun = field + c, True
    assert not quoted, "a quotation mark is not closed"
    return records


def _compare(source: Source, rows: list[dict[str, Any]], across: int) -> None:
    notes = "\n".join(source.notes)
    dropped = re.search(r"dropped (\d+) of (\d+) train rows", notes)
    repeated = re.search(r"left out (\d+) rows? that only", notes)
    total = len(source.train) + (int(dropped.group(1)) if dropped else 0) + (int(repeated.group(1)) if repeated else 0)
    assert total == len(rows), f"{total} rows are accounted for, but there are {len(rows)}"
    assert (across > 0) == ("goes on in the next line" in notes or "go on in the next line" in notes), (
        f"{across} rows take several lines"
    )
    names = {name for row in rows for name in row}
    guessed = [name for name in names if f'"{printable(name)}" is the text' in notes]  # another one where "text" was hit
    text = max(guessed, key=len, default="text")
    if text not in names:  # its name is damaged too, and shown in another form
        return
    used = [r for r in rows if isinstance(t := r.get(text), str) and t.strip() and r.get("label") not in (None, "")]
    labels = {label.strip() if isinstance(label := row["label"], str) else str(label) for row in used} - {"", "nan"}
    if source.label_name == "label" and not repeated and "broken character" not in notes:
        assert len(source.classes) == len(set(map(_class, labels))), f"{labels} became {source.classes}"
        assert len(source.classes) == len(labels) or "are one class" in notes, f"{labels} became {source.classes} without a word"


def _class(label: str) -> str:
    """What a label is to a person who knows the page on data."""
    composed = unicodedata.normalize("NFC", label)
    if composed in ("True", "TRUE", "False", "FALSE"):
        return composed.lower()
    whole = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))\.0", composed)
    return whole.group(1) if whole and whole.group(1) != "-0" else "0" if whole else composed
