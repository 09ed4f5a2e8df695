"""Folders of pictures: a folder for each class, with or without one for each split and each domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from weft.checks import picture_files as checks
from weft.data.columns import Columns, Table, build
from weft.data.formats import suffix
from weft.data.indexes import INDEXES, tables
from weft.data.local import SPLIT_OF, split_files
from weft.data.pictures import is_picture
from weft.data.rows import Source
from weft.data.trees import Folder, Parts, Tree
from weft.errors import UserError


def recognised(tree: Folder) -> bool:
    """Whether a folder is one of pictures: they lie in folders of it, or beside an index or no table at all.

    Raises:
        UserError: it holds files, but neither tables nor pictures that can be read.
    """
    if split_files(tree.path) or split_files(tree.path / "data"):
        return False
    paths = pictures(tree)
    stems = set(tables(tree).values())
    if not any(suffix(Path(parts[-1])) for parts in tree.files):
        checks.some_pictures(tree.name, len(paths), ["/".join(parts) for parts in tree.files])
    return any(len(parts) > 1 for parts in paths) or (bool(paths) and (not stems or not stems.isdisjoint(INDEXES)))


def pictures(tree: Tree) -> list[Parts]:
    """The path of every picture, hidden ones left out."""
    return [parts for parts in tree.files if is_picture(parts[-1])]


def load(tree: Tree, notes: Sequence[str] = ()) -> Source:
    """The source in a folder (or a zip of one) laid out as class/picture, domain/class/picture, or either with split folders at
    the top or between domain and class.

    A folder that holds nothing but another one is passed through. Classes are in the order of their names; pictures stay files.

    Raises:
        UserError: the layout is none of these, or there is no split to train on.
    """
    name, paths = tree.name, pictures(tree)
    if len(depths := {len(parts): parts for parts in reversed(paths)}) > 1:
        one, other = ("/".join(parts) for _, parts in sorted(depths.items())[:2])
        raise UserError(
            f"{name} mixes layouts ({one}, {other}): put every picture into as many folders, such as class/picture or "
            "domain/class/picture."
        )
    said = [*notes, *_left_out(tree, paths)]
    while len(paths[0]) > 2 and len({parts[0] for parts in paths}) == 1:
        tree, paths = tree.below(paths[0][0]), [parts[1:] for parts in paths]
    split_at, domain_at = _levels(name, paths)
    classes = _in_order({parts[-2] for parts in paths})
    number = {called: label for label, called in enumerate(classes)}
    splits: dict[str, Table] = {}
    for parts in paths:
        split = "train" if split_at is None else SPLIT_OF[parts[split_at].lower()]
        table = splits.setdefault(split, {"image": [], "label": [], "domain": []})
        table["image"].append(tree.item(parts))
        table["label"].append(number[parts[-2]])
        table["domain"].append(None if domain_at is None else parts[domain_at])
    if "train" not in splits:
        raise UserError(f"{name} has folders for {' and '.join(sorted(splits))} but none called train: rename one.")
    domains = {parts[domain_at] for parts in paths} if domain_at is not None else set()
    used = Columns(text=None, image="image", label="label", key="domain" if len(domains) > 1 else None)
    said.insert(0, _said(name, paths, splits, len(classes), sorted(domains), domain_at))
    return replace(build(name, splits, used, label_names=dict(enumerate(classes)), notes=said), label_name=None)


def _left_out(tree: Tree, paths: Sequence[Parts]) -> list[str]:
    """What lies beside the pictures: files that are none, and folders without any."""
    named = set(tables(tree))  # said already, with the reason
    taken = set(paths)
    files = ["/".join(parts) for parts in tree.files if parts not in taken and "/".join(parts) not in named]
    used = {parts[:i] for parts in paths for i in range(1, len(parts))}
    empty = [parts for parts in tree.folders if parts not in used and (len(parts) == 1 or parts[:-1] in used)]
    return [
        *checks.left_out(tree.name, files),
        *checks.without_pictures(tree.name, ["/".join(parts) for parts in empty]),
    ]


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
