"""Folders of pictures: a folder for each class, with or without one for each split and each domain, or an index beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from weft.data.columns import Columns, Table, build
from weft.data.formats import read_file
from weft.data.local import SPLIT_OF, data_files, split_files
from weft.data.pictures import columns, is_picture, resolved
from weft.data.rows import Source
from weft.errors import UserError

INDEXES = ("index", "metadata")  # "metadata" is what the hub calls the table beside pictures
DEEPEST = 8  # folders; deeper than any layout, so that a link to a folder above ends somewhere
Parts = tuple[str, ...]  # a picture's path below the folder


def recognised(folder: Path) -> bool:
    """Whether a folder is one of pictures: they lie in folders of it, or beside an index or no table at all."""
    if split_files(folder) or split_files(folder / "data"):
        return False
    found = False
    for parts in _pictures(folder):
        if len(parts) > 1:
            return True
        found = True
    tables = set(data_files(folder).values())
    return found and (not tables or not tables.isdisjoint(INDEXES))


def index(folder: Path, notes: list[str], image: str | None = None) -> dict[str, Table] | None:
    """The rows of a folder with an ``index`` or ``metadata`` file (csv, jsonl, …) that names its pictures, or of one with such a
    file in each of its split folders; None where it has none. Findings are added to ``notes``.

    Raises:
        UserError: the file can't be read, or names pictures that don't exist.
    """
    if found := _index_file(folder):
        table = resolved(read_file(found, notes), folder, image)
        return {"train": table} if image or columns(table) else None
    inside = {path: SPLIT_OF.get(path.name.lower()) for path in sorted(folder.iterdir()) if path.is_dir()}
    files = {split: file for path, split in inside.items() if split and (file := _index_file(path))}
    if "train" not in files:
        return None
    return {split: resolved(read_file(file, notes), file.parent, image) for split, file in files.items()}


def _index_file(folder: Path) -> Path | None:
    files = [path for path, stem in data_files(folder).items() if stem in INDEXES]
    if len(files) > 1:
        raise UserError(f"{folder} holds several tables of its pictures ({', '.join(p.name for p in files)}): leave one.")
    return files[0] if files else None


def by_split(table: Table, where: str) -> dict[str, Table]:
    """The rows of each split that a column ``split`` names, all training rows where there is no such column.

    Raises:
        UserError: no row is a training row.
    """
    column = next((name for name in table if name.lower() == "split"), None)
    names = [] if column is None else [str(value).strip().lower() for value in table[column]]
    if not names or not set(names) <= SPLIT_OF.keys():
        return {"train": table}
    if "train" not in {SPLIT_OF[name] for name in names}:
        raise UserError(f'column "{column}" of {where} names no row train: name the rows to train on so.')
    splits: dict[str, Table] = {}
    for split in sorted({SPLIT_OF[name] for name in names}):
        rows = [i for i, name in enumerate(names) if SPLIT_OF[name] == split]
        splits[split] = {name: [values[i] for i in rows] for name, values in table.items()}
    return splits


def load(folder: Path) -> Source:
    """The source in a folder laid out as class/picture, domain/class/picture, or either with split folders at the top or between
    domain and class.

    A folder that holds nothing but another one is passed through. Classes are in the order of their names; pictures stay files.

    Raises:
        UserError: the layout is none of these, or there is no split to train on.
    """
    name = folder.resolve().name
    paths = sorted(_pictures(folder))
    if len(depths := {len(parts): parts for parts in reversed(paths)}) > 1:
        one, other = ("/".join(parts) for _, parts in sorted(depths.items())[:2])
        raise UserError(
            f"{name} mixes layouts ({one}, {other}): put every picture into as many folders, such as class/picture or "
            "domain/class/picture."
        )
    while len(paths[0]) > 2 and len({parts[0] for parts in paths}) == 1:
        folder, paths = folder / paths[0][0], [parts[1:] for parts in paths]
    split_at, domain_at = _levels(name, paths)
    classes = _in_order({parts[-2] for parts in paths})
    number = {called: label for label, called in enumerate(classes)}
    splits: dict[str, Table] = {}
    for parts in paths:
        split = "train" if split_at is None else SPLIT_OF[parts[split_at].lower()]
        table = splits.setdefault(split, {"image": [], "label": [], "domain": []})
        table["image"].append(folder.joinpath(*parts))
        table["label"].append(number[parts[-2]])
        table["domain"].append(None if domain_at is None else parts[domain_at])
    if "train" not in splits:
        raise UserError(f"{name} has folders for {' and '.join(sorted(splits))} but none called train: rename one.")
    domains = {parts[domain_at] for parts in paths} if domain_at is not None else set()
    used = Columns(text=None, image="image", label="label", key="domain" if len(domains) > 1 else None)
    said = _said(name, paths, splits, len(classes), sorted(domains), domain_at)
    return replace(build(name, splits, used, label_names=dict(enumerate(classes)), notes=[said]), label_name=None)


def _pictures(folder: Path) -> Iterable[Parts]:
    """The path of every picture below ``folder``, hidden ones left out."""
    for root, inside, files in os.walk(folder, followlinks=True):
        above = Path(root).relative_to(folder).parts
        inside[:] = sorted(d for d in inside if not d.startswith((".", "__"))) if len(above) < DEEPEST else []
        yield from ((*above, file) for file in sorted(files) if is_picture(file))


def _levels(name: str, paths: Sequence[Parts]) -> tuple[int | None, int | None]:
    """Which folder above a picture is its split and which its domain, counted from the top; the last one is its class."""
    names = [sorted({parts[level] for parts in paths}) for level in range(len(paths[0]) - 1)]
    splits = [[n for n in level if n.lower() in SPLIT_OF] for level in names]
    if not names:
        raise UserError(f"{name} holds pictures without folders: put those of each class into a folder called like the class.")
    if splits[-1] == names[-1]:
        raise UserError(f"the pictures of {name} lie right below {_some(names[-1])}: give each class a folder there.")
    if len(names) == 1:
        return None, None
    if len(names) > 3:
        raise UserError(
            f"{name} has {len(names)} levels of folders above its pictures, such as {'/'.join(paths[0])}: lay it out as "
            "class/picture or domain/class/picture, with or without split folders."
        )
    for level in range(len(names) - 1):
        if splits[level] == names[level]:
            return level, None if len(names) == 2 else 1 - level
    if len(names) == 2 and not splits[0]:
        return None, 0
    if len(names) == 2:
        odd = sorted(set(names[0]) - set(splits[0]))
        raise UserError(f"{name} mixes folders for splits ({_some(splits[0])}) with others ({_some(odd)}): leave one kind.")
    raise UserError(
        f"{name} has three levels of folders, so those of the first or the second should be splits (train, test, validation), "
        f"but they are called {_some(names[0])} and {_some(names[1])}: rename them, or leave the others out."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _in_order(names: Iterable[str]) -> list[str]:
    """By name, and numbers by size."""
    found = sorted(names)
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found


def _said(
    name: str, paths: Sequence[Parts], splits: dict[str, Table], classes: int, domains: Sequence[str], domain_at: int | None
) -> str:
    """What was recognised."""
    numbers = {split: len(table["image"]) for split, table in splits.items()}
    said = f"{name}: {len(paths)} pictures, "
    if len(domains) > 1:
        said += f"{len(domains)} domains ({_some(domains)}) × {classes} classes, domain is the natural key"
        if len({(parts[domain_at or 0], parts[-2]) for parts in paths}) == classes:
            said += " (no class is in two of them)"
    else:
        said += f"{classes} classes"
    if len(numbers) > 1 or "train" not in numbers:
        said += "; split by folders into " + ", ".join(f"{n} {split}" for split, n in sorted(numbers.items()))
    return f"{said}."
