"""Local files and folders: which files are the training, the test and the validation split."""

from __future__ import annotations

import re
from pathlib import Path

from weft.checks import table_files as checks
from weft.data.columns import Table
from weft.data.formats import PLAIN, READABLE, read_file, suffix
from weft.data.pictures import resolved
from weft.data.trees import Beside
from weft.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "crossval"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d+)-of-(?P<of>\d+)(-[0-9a-f]+)?")  # a hash follows in older sets of the hub
ABOUT = ("dataset_info", "dataset_infos", "dataset_dict", "state")  # .json files that ``datasets`` writes beside rows
Files = dict[str, list[Path]]  # split -> its files, in order


def read(path: Path, notes: list[str], image: str | None = None) -> dict[str, Table]:
    """The splits found at ``path``: a file is a training split; a folder holds a file (or shards) for each split, or a folder of
    files. Columns of pictures, such as ``image``, are items of :class:`weft.data.images.Images`.

    Findings are added to ``notes``. Raises UserError for what is missing, empty or unreadable, with file and line where there is
    one.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}: check the path.")
    files = {"train": [path]} if path.is_file() else _split_files(path, notes)
    splits = {}
    for split, parts in files.items():
        tables = {part.name: resolved(read_file(part, notes), Beside(part), image) for part in parts}
        notes += checks.shards(path.name, {name: table.keys() for name, table in tables.items() if _length(table)})
        names = list(dict.fromkeys(name for table in tables.values() for name in table))
        splits[split] = {n: [v for t in tables.values() for v in t.get(n, [None] * _length(t))] for n in names}
        if not _length(splits[split]):
            raise UserError(f"{' and '.join(map(str, parts))} holds no rows: give a file with a row for each example.")
    return splits


def saved_by_datasets(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the ``datasets`` library made a folder."""
    return (folder / "dataset_dict.json").is_file() or all((folder / f).is_file() for f in ("dataset_info.json", "state.json"))


def _length(table: Table) -> int:
    return len(next(iter(table.values()), []))


def data_files(folder: Path) -> dict[Path, str]:
    """The files in a folder that can be read, in the order of their names, with their names in small letters and no suffix.

    Hidden files are none of them (``._train.csv`` is what macOS keeps about ``train.csv``), nor what Excel keeps of an open one.
    A plain text counts if it is called like a split and there are no tables: most others only say what is there.

    Raises:
        UserError: the name of one is not UTF-8.
    """
    found = {path: path.name[: -len(suffix(path) or "")].lower() for path in sorted(folder.glob("*")) if suffix(path)}
    kept = {
        path: stem
        for path, stem in found.items()
        if not path.name.startswith((".", "~$")) and stem not in ABOUT and path.is_file()
    }
    texts = {path: stem for path, stem in kept.items() if (suffix(path) or "").startswith(PLAIN)}
    if texts:
        plain = texts if len(texts) == len(kept) else {}
        kept = {p: s for p, s in kept.items() if p not in texts or (p in plain and _split_of(s))}
    for path in kept:
        checks.file_name(str(path))
    return kept


def _split_of(stem: str) -> str | None:
    """The split that a file or a shard is called like."""
    shard = SHARD.fullmatch(stem)
    return SPLIT_OF.get(shard["split"] if shard else stem)


def split_files(folder: Path) -> Files:
    """The files (or shards) of each split right below ``folder``, by their names; none if there is none to train on.

    Raises:
        UserError: a split has several files, or a shard is missing.
    """
    stems = data_files(folder)
    found: Files = {}
    for split, names in SPLIT_NAMES.items():
        exact = [path for path, stem in stems.items() if stem in names]
        shards = {p: m for p, stem in stems.items() if (m := SHARD.fullmatch(stem)) and m["split"] in names}
        if len(exact) > 1:
            raise UserError(f"{folder} holds several {split} files ({', '.join(p.name for p in exact)}): leave one.")
        if exact or shards:
            found[split] = exact or list(shards)
        if not exact:
            checks.all_shards(str(folder), split, {(int(m["number"]), int(m["of"])) for m in shards.values()})
    return found if "train" in found else {}


def _folder_files(folder: Path) -> Files:
    """The files in folders called like splits, such as ``train/0000.parquet``; none if there is none to train on."""
    found: Files = {}
    for inside in _folders(folder):
        if (split := SPLIT_OF.get(inside.name.lower())) and (files := list(data_files(inside))):
            if split in found:
                raise UserError(f"{folder} holds several folders for its {split} split: leave one.")
            found[split] = files
    return found if "train" in found else {}


def _folders(folder: Path) -> list[Path]:
    """Those inside, but for hidden ones and what macOS packs beside."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def _split_files(folder: Path, notes: list[str]) -> Files:
    inside = _folders(folder)
    # "data" is where the hub keeps a set's files, "default" (or a config) where it keeps what it made of them.
    for place in (folder, folder / "data", *(inside if len(inside) == 1 else ())):
        if files := split_files(place):
            notes += checks.files_left(
                folder.name, [p.name for own in files.values() for p in own], [p.name for p in data_files(place)]
            )
            return files
        if files := _folder_files(place):
            return files
        alone = list(data_files(place))
        if len(alone) == 1:
            return {"train": [_to_train_on(place, alone[0])]}
        if alone:
            some = ", ".join(path.name for path in alone[:5])
            raise UserError(f"{place} holds {some} but no file called train: rename one, or give --data one file.")
    raise UserError(f"{folder} holds no data file that Weft reads ({READABLE}), and no pictures.")


def _to_train_on(folder: Path, file: Path) -> Path:
    """Refuse a folder's only file if its name says that it is not for training."""
    stem = data_files(folder)[file]
    split = _split_of(stem) or "train"
    if split != "train":
        raise UserError(
            f"{folder} holds a {split} file alone ({file.name}): add one called train, or give --data {file} to use all of its "
            "rows."
        )
    return file
