"""Columns of pictures: which column of a table holds them, and each value as an item of :class:`weft.data.images.Images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weft.checks import picture_files as checks
from weft.data.decoding import formats
from weft.data.images import Item
from weft.data.trees import Folder, Tree

NAMES = ("image", "img", "picture", "photo", "image_path", "img_path", "file_name", "filename", "file", "path")
LOOKED_AT = 100  # rows that tell what a column holds


def is_picture(name: str) -> bool:
    """Whether a file is a picture that the Pillow installed here can read, by its name."""
    return Path(name.strip()).suffix.lower() in formats()


def resolved(
    table: Mapping[str, Sequence[Any]], place: Path | Tree, asked: str | None = None, *, index: bool = False
) -> dict[str, Any]:
    """The table with its columns of pictures as items: files below ``place``, or encoded bytes.

    Such columns hold ``{"bytes": …, "path": …}``, the form that ``datasets`` stores; or bytes, or names of files, under one of
    the usual names or the name ``asked`` for. Of a table that is no ``index`` of pictures, names count only if some exist.

    Raises:
        UserError: a column of pictures names files that don't exist.
    """
    tree = Folder(place) if isinstance(place, Path) else place
    found = dict(table)
    for name, values in table.items():
        some = [value for value in values[:LOOKED_AT] if value is not None]
        named = name == asked or name.strip().lower() in NAMES
        if some and all(isinstance(v, dict) and {"bytes", "path"} >= v.keys() for v in some):
            found[name] = [_stored(v) if isinstance(v, dict) and v.get("bytes") is not None else _path(v) for v in values]
            if any(isinstance(v, str) for v in found[name]):
                found[name] = _files(name, found[name], tree)
        elif some and named and all(isinstance(v, str) for v in some):
            looks = all(is_picture(v) for v in some if v.strip())
            if name == asked or (looks and (index or any(tree.find(v) is not None for v in some if v.strip()))):
                found[name] = _files(name, values, tree)
    return found


def _stored(value: Mapping[str, Any]) -> Item:
    return partial(bytes, value["bytes"])  # bare bytes may be anything, see columns()


def _path(value: Any) -> str | None:
    return value.get("path") if isinstance(value, dict) else None


def _files(column: str, values: Sequence[Any], tree: Tree) -> list[Item | None]:
    """The items of a column in which names of files are strings."""
    given = [value.strip() != "" if isinstance(value, str) else value is not None for value in values]
    found = [(tree.find(v) if isinstance(v, str) else v) if here else None for v, here in zip(values, given, strict=True)]
    names = [v for v in values if isinstance(v, str) and v.strip()]
    absent = [str(v) for v, item, here in zip(values, found, given, strict=True) if here and item is None]
    checks.all_present(tree.name, column, names, absent)
    return found


def columns(table: Mapping[str, Sequence[Any]], asked: str | None = None) -> list[str]:
    """The columns that hold pictures, those with a usual name first.

    Bare bytes may be anything: they count under a usual name only, or the name ``asked`` for.
    """
    found = []
    for name, values in table.items():
        first = next((value for value in values if value is not None), None)
        known = name == asked or name.strip().lower() in NAMES
        picture = isinstance(first, Path | np.ndarray) or callable(first) or hasattr(first, "convert")  # the last is Pillow's
        if picture or (isinstance(first, bytes) and known):
            found.append(name)
    return sorted(found, key=lambda name: NAMES.index(name.lower()) if name.lower() in NAMES else len(NAMES))
