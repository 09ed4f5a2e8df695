"""Local files and folders: jsonl, json, csv, tsv (each also .gz) and parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.data.columns import Table
from weft.data.pictures import resolved
from weft.errors import UserError

TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
FORMATS = (*TEXT_FORMATS, *(f"{suffix}.gz" for suffix in TEXT_FORMATS), ".parquet")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "crossval"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def suffix(path: Path) -> str | None:
    """The format of a file by its name, such as ``.csv.gz``, or None where Weft does not read it."""
    return next((s for s in sorted(FORMATS, key=len, reverse=True) if path.name.lower().endswith(s)), None)


def read(path: Path, image: str | None = None) -> dict[str, Table]:
    """The splits found at ``path``: a file is a training split; a folder holds a file (or shards) for each
    split. Columns of pictures, such as ``image``, are items of :class:`weft.data.images.Images`.

    Raises UserError for what is missing, empty or unreadable, with file and line where there is one.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}: check the path given to --data.")
    files = {"train": [path]} if path.is_file() else _split_files(path)
    splits = {}
    for split, parts in files.items():
        tables = [resolved(read_file(part), part.parent, image) for part in parts]
        names = list(dict.fromkeys(name for table in tables for name in table))
        splits[split] = {n: [v for t in tables for v in t.get(n, [None] * _length(t))] for n in names}
        if not _length(splits[split]):
            raise UserError(f"{' and '.join(map(str, parts))} holds no rows: give a file with a row for each example.")
    return splits


def _length(table: Table) -> int:
    return len(next(iter(table.values()), []))


def data_files(folder: Path) -> dict[Path, str]:
    """The files in a folder that can be read, in the order of their names, with their names in small letters and no suffix."""
    files = sorted(path for path in folder.glob("*") if path.is_file() and suffix(path))
    return {path: path.name[: -len(suffix(path) or "")].lower() for path in files}


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files (or shards) of each split right below ``folder``, by their names; none if there is none to train on."""
    stems = data_files(folder)
    found: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        exact = [path for path, stem in stems.items() if stem in names]
        shards = [p for p, stem in stems.items() if re.fullmatch(rf"({'|'.join(names)})-\d+-of-\d+", stem)]
        if len(exact) > 1:
            raise UserError(f"{folder} holds several {split} files ({', '.join(p.name for p in exact)}): leave one.")
        if exact or shards:
            found[split] = exact or shards
    return found if "train" in found else {}


def _split_files(folder: Path) -> dict[str, list[Path]]:
    for place in (folder, folder / "data"):  # "data" is where the hub keeps a set's files
        if found := split_files(place):
            return found
        files = list(data_files(place))
        if len(files) == 1:
            return {"train": files}
        if files:
            some = ", ".join(path.name for path in files[:5])
            raise UserError(f"{place} holds {some} but no file called train: rename one, or give --data one file.")
    raise UserError(f"{folder} holds no data file that Weft reads ({', '.join(TEXT_FORMATS)}, .parquet), and no pictures.")


def read_file(path: Path) -> Table:
    """The columns of one file."""
    kind = suffix(path)
    if kind is None:
        raise UserError(f"Weft doesn't read {path.name}: give it one of {', '.join(TEXT_FORMATS)} (or .gz), or .parquet.")
    try:
        if kind == ".parquet":
            return _parquet(path)
        text = (gzip.open if kind.endswith(".gz") else open)(path, "rb").read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read ({error}): check the file.") from error
    if kind.startswith((".csv", ".tsv")):
        return _separated(path, text, "\t" if kind.startswith(".tsv") else None)
    if kind.startswith(".json") and not kind.startswith(".jsonl"):
        return _json(path, text)
    return _from_objects(path, _json_lines(path, text))


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        stored = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet: {str(error).splitlines()[0]}") from error
    table: Table = stored.to_pydict()
    # What ``datasets`` writes beside a column of classes: their names, which then make a companion of the label.
    about = json.loads((stored.schema.metadata or {}).get(b"huggingface", b"{}"))
    for name, feature in about.get("info", {}).get("features", {}).items():
        if name in table and isinstance(feature, dict) and (names := feature.get("names")):
            called = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in table[name]]
            table.setdefault(f"{name}_name", called)
    return table


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number} is not JSON ({error.msg} at column {error.colno}).") from error


def _json(path: Path, text: str) -> Table:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the name .json
            return _from_objects(path, _json_lines(path, text))
        raise UserError(f"{path}:{error.lineno} is not JSON ({error.msg} at column {error.colno}).") from error
    if isinstance(value, dict):
        columns = [v for v in value.values() if isinstance(v, list)]
        if len(columns) == len(value) > 1 and len({len(v) for v in columns}) == 1:
            return value
        value = columns[0] if len(columns) == 1 else None  # such as {"version": …, "data": [ … ]}
    if not isinstance(value, list):
        raise UserError(f"{path} holds no list of rows: give a list of objects, or one object a line.")
    return _from_objects(path, enumerate(value, 1))


def _from_objects(path: Path, objects: Iterator[tuple[int, Any]] | enumerate[Any]) -> Table:
    rows = []
    for number, value in objects:
        if not isinstance(value, dict):
            raise UserError(f'{path}:{number} is not an object of columns, such as {{"text": …, "label": …}}.')
        rows.append(value)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _separated(path: Path, text: str, delimiter: str | None) -> Table:
    header = text.split("\n", 1)[0]
    delimiter = delimiter or max(",;\t|", key=header.count)
    csv.field_size_limit(2**31 - 1)  # long documents are ordinary here
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        columns: list[list[str]] = [[] for _ in names]
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(f"{path}:{reader.line_num} has {len(row)} fields, but the header has {len(names)}.")
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num} is not readable as a table ({error}).") from error
    if len(set(names)) != len(names):
        raise UserError(f"{path} has two columns of the same name in its header: {', '.join(names)}.")
    return dict(zip(names, columns, strict=True))
