"""Tables of fields between delimiters: csv, whose quoted fields may go on in the next line, and tsv, where a line is a row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from weft.checks import table_files as checks
from weft.data.spelling import column

DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r'"?sep=(.)"?[ \t]*(\r\n|\r|\n)', re.IGNORECASE)  # a first line for Excel
NEWLINE = re.compile(r"\r\n|\r|\n")
Record = tuple[int, int, list[str]]  # the line on which it begins, how many lines it takes, its fields


def separated(path: Path, text: str, by_lines: bool, notes: list[str]) -> tuple[list[str], list[list[str]]]:
    """Names and columns of a table in text form; findings are added to ``notes``.

    Args:
        by_lines: a tsv file: tabs, and no field goes on in the next line. Else the header tells the delimiter.

    Raises:
        UserError: a row has more or fewer fields than the header, or a quotation mark is not closed.
    """
    body = text.lstrip("\r\n")
    named = SEPARATOR.match(body)
    body = body[named.end() :].lstrip("\r\n") if named else body
    before = len(NEWLINE.findall(text[: len(text) - len(body)]))
    header = re.sub(r'"[^"]*"', "", NEWLINE.split(body, maxsplit=1)[0])
    delimiter = named.group(1) if named else "\t" if by_lines else max(DELIMITERS, key=header.count)
    records = _lines(body, delimiter) if by_lines else _quoted(path, body, delimiter, before, header)
    names = next(records, (0, 0, []))[2]
    columns: list[list[str]] = [[] for _ in names]
    spans, repeated = [], 0
    own = [column(name) for name in names]
    for line, lines, row in records:
        if not row:
            continue
        checks.fields(str(path), line + before, len(row), len(names), by_lines=by_lines)
        if lines > 1:
            spans.append((line + before, lines))
        if column(row[0]) == own[0] and [column(value) for value in row] == own:
            repeated += 1
            continue
        for values, value in zip(columns, row, strict=True):
            values.append(value)
    notes += checks.across_lines(path.name, spans)
    notes += checks.repeated_header(path.name, repeated)
    return names, columns


def _quoted(path: Path, text: str, delimiter: str, before: int, header: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # long documents are ordinary here
    spaced = header.count(delimiter) == header.count(f"{delimiter} ") > 0  # "text, label": the blank is no part of a value
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    ended = 0
    try:
        for row in reader:
            begun, ended = ended + 1, reader.line_num
            yield begun, ended - begun + 1, row
    except csv.Error as error:
        raise checks.unclosed(str(path), ended + 1 + before, error) from error


def _lines(text: str, delimiter: str) -> Iterator[Record]:
    """A quotation mark is one like any other, unless a whole field stands between two, or a delimiter does."""
    header = 0
    for number, line in enumerate(NEWLINE.split(text), 1):
        row = line.split(delimiter) if line else []
        header = header or len(row)
        if len(row) == header or '"' not in line:
            yield number, 1, [_unquoted(field) for field in row]
            continue
        try:
            quoted = next(csv.reader([line], delimiter=delimiter, strict=True))
        except csv.Error:
            quoted = row
        yield number, 1, quoted if len(quoted) == header else row


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"')
