"""One file as a table: which formats there are, text from bytes, and columns with names."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.checks import table_files as checks
from weft.data.columns import Table
from weft.data.conll import conll
from weft.data.excel import excel
from weft.data.json_rows import json_file, json_lines
from weft.data.separated import separated
from weft.data.spelling import column, number, spelled
from weft.errors import UserError

CONLL = (".conll", ".bio", ".iob", ".iob2")
PLAIN = ".txt"
TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", PLAIN, *CONLL)
WRAPPED = 200  # characters of a line of wrapped text, at most: where a line is longer, each is a paragraph
EXCEL = (".xlsx", ".xlsm")
FORMATS = (*TEXT_FORMATS, *(f"{suffix}.gz" for suffix in TEXT_FORMATS), ".parquet", *EXCEL)
READABLE = f"{', '.join(TEXT_FORMATS)} (or .gz), .parquet or .xlsx"
INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name in a parquet file
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def suffix(path: Path) -> str | None:
    """The format of a file by its name, such as ``.csv.gz``, or None where Weft does not read it."""
    return next((s for s in sorted(FORMATS, key=len, reverse=True) if path.name.lower().endswith(s)), None)


def decoded(data: bytes, where: str) -> str:
    """The text of UTF-8 bytes, or of UTF-16 ones that say so, without a byte order mark.

    Raises:
        UserError: they are in another encoding; ``where`` is what the sentence calls them.
    """
    wide = data.startswith(UTF_16)
    if not wide and (zero := data.find(b"\0")) >= 0:
        raise UserError(f"{where} holds a zero byte ({_place(data, zero)}), as UTF-8 text does not: save it as UTF-8.")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({_place(data, error.start)}): save it as UTF-8.") from error


def _place(data: bytes, byte: int) -> str:
    return f"line {data.count(10, 0, byte) + 1}, byte {byte}"


def read_file(path: Path, notes: list[str]) -> Table:
    """The columns of one file; findings are added to ``notes``.

    Raises:
        UserError: the file can't be read, with its line where there is one.
    """
    kind = suffix(path)
    checks.file_name(str(path))
    if kind is None:
        raise UserError(f"Weft doesn't read {path.name}: give it one of {READABLE}.")
    try:
        if kind == ".parquet":
            return _parquet(path, notes)
        if kind in EXCEL:
            return _named(path, *excel(path, notes), notes)
        with (gzip.open if kind.endswith(".gz") else open)(path, "rb") as file:
            text = decoded(file.read(), str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read ({error}): check the file.") from error
    if kind.startswith((".csv", ".tsv")):
        return _named(path, *separated(path, text, kind.startswith(".tsv"), notes), notes)
    if kind.startswith(CONLL):
        return _named(path, *conll(path, text), notes)
    if kind.startswith(PLAIN):
        return {"text": _paragraphs(text)}
    whole = kind.startswith(".json") and not kind.startswith(".jsonl")
    return _named(path, *(json_file if whole else json_lines)(path, text, notes), notes)


def _paragraphs(text: str) -> list[Any]:
    """The paragraphs of a plain text, parted by blank lines; its lines, if none is blank or they are too long to be wrapped."""
    lines = text.splitlines()
    parted = re.split(r"\n\s*\n", "\n".join(lines).strip())
    found = lines if len(parted) < 2 or max(map(len, lines)) > WRAPPED else parted
    return [paragraph.strip() for paragraph in found if paragraph.strip()]


def _named(path: Path, names: Sequence[str], columns: Sequence[Sequence[Any]], notes: list[str]) -> Table:
    """A table without its nameless columns of row numbers or of nothing; another one is called by its place."""
    table: Table = {}
    left, called = [], []
    plain = ["" if INDEX.fullmatch(name) else column(name) for name in names]
    checks.same_names(str(path), [name for name in plain if name])
    for place, (name, values) in enumerate(zip(plain, columns, strict=True), 1):
        if not name:
            content = _content(values)
            if content:
                left.append((place, content))
                continue
            name = f"column {place}"
            while name in plain:
                name += "'"
            called.append(name)
        table[name] = list(values)
    notes += checks.nameless(path.name, left, called)
    return table


def _content(values: Sequence[Any]) -> str | None:
    """What a column without a name holds, if it is nothing that anybody could mean."""
    found = [spelled(value) if isinstance(value, str | int | float | None) else "" for value in values]
    there = [value for value in found if value is not None]
    if not there:
        return checks.EMPTY
    return checks.NUMBERS if all(number(value) is not None for value in there) else None


def _names_in_list(feature: Any) -> list[str]:
    """The names of the classes that a column of lists holds, none if it holds something else."""
    inner = feature.get("feature") if isinstance(feature, dict) else feature[0] if isinstance(feature, list) and feature else None
    return list(inner.get("names") or []) if isinstance(inner, dict) else []


def _parquet(path: Path, notes: list[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        stored = pyarrow.parquet.ParquetFile(path).read()
        columns = [values.to_pylist() for values in stored.columns]
        names = list(stored.column_names)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} can't be read as parquet: {str(error).splitlines()[0]}") from error
    table = _named(path, names, columns, notes)
    # What ``datasets`` writes beside a column of classes: their names, which then make a companion of the label.
    try:
        about = json.loads((stored.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(about.get("info", {}).get("features", {}))
    except (ValueError, AttributeError, TypeError):  # another program's
        features = {}
    for name, feature in features.items():
        if name in table and isinstance(feature, dict) and (classes := feature.get("names")):
            called = [classes[v] if isinstance(v, int) and 0 <= v < len(classes) else None for v in table[name]]
            table.setdefault(f"{name}_name", called)
        elif name in table and (classes := _names_in_list(feature)):
            table[name] = [v if v is None else [classes[n] if 0 <= n < len(classes) else n for n in v] for v in table[name]]
    return table
