"""A table beside pictures that names them: an index, or a metadata file as on the hub."""

from __future__ import annotations

from collections.abc import Mapping

from weft.checks import picture_files as checks
from weft.data.columns import LABELS, Table
from weft.data.formats import read_file, suffix
from weft.data.local import ABOUT, SPLIT_OF
from weft.data.pictures import columns, is_picture, resolved
from weft.data.trees import Parts, Tree, narrowed
from weft.errors import UserError

INDEXES = ("index", "metadata")  # "metadata" is what the hub calls the table beside pictures


def tables(tree: Tree) -> dict[str, str]:
    """The tables right in a folder: the name of each file, and that name in small letters without its suffix."""
    found = {}
    for parts in tree.files:
        if len(parts) == 1 and (kind := suffix(tree.path / parts[0])) is not None:
            found[parts[0]] = parts[0][: -len(kind)].lower()
    return {name: stem for name, stem in found.items() if stem not in ABOUT}


def read(tree: Tree, notes: list[str], image: str | None = None) -> dict[str, Table] | None:
    """The rows of a folder with an ``index`` or ``metadata`` file (csv, jsonl, …) that names its pictures, or with one table of
    another name that does, or with such a file in each of its split folders; None where it has none.

    Args:
        notes: what was not used is added to them, with its reason. image: the column that names pictures.

    Raises:
        UserError: the file can't be read, names pictures that don't exist, or holds labels and names no pictures.
    """
    tree = narrowed(tree)
    if file := _index(tree):
        table = _read(tree, (file,), notes)
        rows = resolved(table, tree, image, index=True)
        if image or columns(rows):
            notes += _unlisted(tree, file, rows, image)
            notes += [n for other in tables(tree) if other != file for n in checks.other_table(tree.name, other, f"{file} is")]
            return {"train": rows}
        notes += checks.unused_table(tree.name, file, list(table), _label(table))
    elif (found := _other(tree, notes, image)) is not None:
        return found
    inside = {parts[0]: SPLIT_OF.get(parts[0].lower()) for parts in tree.folders if len(parts) == 1}
    places = {split: tree.below(folder) for folder, split in inside.items() if split is not None}
    files = {split: file for split, place in places.items() if (file := _index(place))}
    if "train" not in files:
        return None
    splits = {}
    for split, file in files.items():
        place = places[split]
        splits[split] = rows = resolved(_read(place, (file,), notes), place, image, index=True)
        notes += _unlisted(place, file, rows, image)
    return splits


def _read(tree: Tree, parts: Parts, notes: list[str]) -> Table:
    with tree.file(parts) as path:
        return read_file(path, notes)


def _index(tree: Tree) -> str | None:
    files = [name for name, stem in tables(tree).items() if stem in INDEXES]
    if len(files) > 1:
        raise UserError(f"{tree.name} holds several tables of its pictures ({', '.join(files)}): leave one.")
    return files[0] if files else None


def _other(tree: Tree, notes: list[str], image: str | None) -> dict[str, Table] | None:
    """The rows of the only table that names pictures of the folder, under whatever name; others are said."""
    found: dict[str, Table] = {}
    for file in tables(tree):
        said: list[str] = []
        try:
            table = _read(tree, (file,), said)
            rows = resolved(table, tree, image if image in table else None)
        except UserError as error:
            notes += checks.other_table(tree.name, file, str(error).rstrip("."))
            continue
        if columns(rows, image) and _label(table) is not None:
            found[file] = rows
            notes += said
        else:
            notes += checks.other_table(tree.name, file, "no column of it names pictures of the folder beside one of labels")
    if len(found) > 1:
        raise UserError(f"{tree.name} holds several tables of its pictures ({', '.join(found)}): leave one, or call it index.")
    for file, rows in found.items():
        notes.append(f"{tree.name}: {file} names the pictures and tells their labels.")
        notes += _unlisted(tree, file, rows, image)
        return {"train": rows}
    return None


def _label(table: Mapping[str, object]) -> str | None:
    return next((name for name in table if name.strip().lower() in LABELS), None)


def _unlisted(tree: Tree, file: str, rows: Table, image: str | None) -> list[str]:
    used = {item for name in columns(rows, image) for item in rows[name] if item is not None and _hashable(item)}
    pictures = [parts for parts in tree.files if is_picture(parts[-1])]
    return checks.unlisted(tree.name, file, len(pictures), ["/".join(p) for p in pictures if tree.item(p) not in used])


def _hashable(item: object) -> bool:
    return type(item).__hash__ is not None
