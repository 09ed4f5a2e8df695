"""Columns of pictures: which column of a table holds them, and each value as an item of :class:`weft.data.images.Images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weft.data.images import Item
from weft.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NAMES = ("image", "img", "picture", "photo", "image_path", "img_path", "file_name", "filename", "file", "path")
LOOKED_AT = 100  # rows that tell what a column holds


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def resolved(table: Mapping[str, Sequence[Any]], folder: Path, asked: str | None = None) -> dict[str, Any]:
    """The table with its columns of pictures as items: files below ``folder``, or encoded bytes.

    Such columns hold ``{"bytes": …, "path": …}``, the form that ``datasets`` stores; or bytes, or names of files that exist,
    under one of the usual names or the name ``asked`` for.

    Raises:
        UserError: a column of pictures names files that don't exist.
    """
    found = dict(table)
    for name, values in table.items():
        some = [value for value in values[:LOOKED_AT] if value is not None]
        named = name == asked or name.lower() in NAMES
        if some and all(isinstance(v, dict) and {"bytes", "path"} >= v.keys() for v in some):
            found[name] = [None if v is None else _stored(v, folder) for v in values]
        elif some and named and all(isinstance(v, str) for v in some):
            files = [folder / v.strip() if isinstance(v, str) and v.strip() else None for v in values]
            first = next((path for path in files if path is not None), None)
            if name == asked or (all(is_picture(v.strip()) for v in some) and first is not None and first.exists()):
                found[name] = files
                _check_files(name, files)
    return found


def _stored(value: Mapping[str, Any], folder: Path) -> Item | None:
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return partial(bytes, data)  # bare bytes may be anything, see columns()
    return None if path is None else folder / path


def _check_files(column: str, files: Sequence[Path | None]) -> None:
    absent = [path for path in files if path is not None and not path.is_file()]
    if absent:
        raise UserError(
            f'column "{column}" names {len(absent)} of {len(files)} pictures that do not exist, first {absent[0]}: '
            "names of pictures are read from the folder of the table."
        )


def columns(table: Mapping[str, Sequence[Any]], asked: str | None = None) -> list[str]:
    """The columns that hold pictures, those with a usual name first.

    Bare bytes may be anything: they count under a usual name only, or the name ``asked`` for.
    """
    found = []
    for name, values in table.items():
        first = next((value for value in values if value is not None), None)
        known = name == asked or name.lower() in NAMES
        if isinstance(first, Path | np.ndarray) or callable(first) or (isinstance(first, bytes) and known):
            found.append(name)
    return sorted(found, key=lambda name: NAMES.index(name.lower()) if name.lower() in NAMES else len(NAMES))
