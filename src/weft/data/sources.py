"""Loading a data set by whatever a person types: a catalogue name, a hub id, or a local file or folder."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from weft.checks import table_files as checks
from weft.data import folders, given, indexes, interactions, questions, scored, several
from weft.data.assemble import assemble
from weft.data.columns import NoColumn, Wanted
from weft.data.formats import suffix
from weft.data.hub_sets import catalogue
from weft.data.local import read, saved_by_datasets
from weft.data.rows import BOTH, Rows, Source, fingerprint
from weft.data.trees import Folder, Tree, Zip
from weft.errors import UserError, nearest

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load(
    name: Any,
    *,
    seed: int = 0,
    image: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    key: str | None = None,
    pairs: str | None = None,
    limit: int | None = None,
    one_class: bool = False,
    wanted: Wanted = "classes",
    core: int = 0,
) -> Source:
    """Load the set called ``name``: a catalogue name, a local file or folder, or a hub id
    ``owner/name[:config]``. From Python it may also be a frame or a set of the datasets library, see :mod:`weft.data.given`.

    image, text, pair, label, key: the columns of the picture or the text, of a second text, of the label and of the natural
        client, where the guess is wrong; guesses are in ``notes``.
    pairs: of translations the directions that are read, as ``en-de,de-en``; rows are then for generation.
    limit: at most this many rows of each split, drawn with ``seed`` (held-out clients count as one split).
    wanted: what a row is for: the label is one of ``classes``, or one of ``numbers`` to predict; rows are for generation,
        ``answers``; have two answers that were compared, ``preferences``; are sequences of ``items``, see
        :mod:`weft.data.interactions`; or ``any``, where a label with fractions is a number, and files that hold nothing else
        are read as sequences.
        Tagged words are recognised whatever is wanted but answers and preferences; and so are, for classes and any, data that are
        for nothing but generation or preferences, see :mod:`weft.data.dialogues` and :mod:`weft.data.preferred`.
    one_class: whether that is enough to train on, as it is for one site of a federation.
    core: of sequences: users and items with fewer interactions are left out, see :func:`weft.data.sequences.core`.

    Raises UserError for an unknown name, a missing or unreadable file, an absent column, and training rows
    of one class.
    """
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if isinstance(name, str):
        checks.file_name(name)
    columns = {"image": image, "text": text, "pair": pair, "label": label, "key": key, "pairs": pairs}
    if pairs is not None:
        wanted = "answers"
    if limit is not None:
        _enough(limit)
    asked = {flag: column for flag, column in columns.items() if column is not None}
    if wanted == "items" and not isinstance(name, str):
        raise UserError("sequences of items are read from a file or folder: give its path, or weft.data.Rows with items.")
    if core and wanted == "any":
        wanted = "items"
    if core and wanted != "items":
        raise UserError(NO_CORE)
    source = _load(name, asked, wanted, core) if isinstance(name, str) else given.read(name, asked, wanted)
    if wanted == "numbers" and source.train.of_classes:
        source = scored.from_classes(source)
    if wanted == "answers" and source.train.of_classes and source.train.read_as == BOTH:
        source = questions.to_write(source)
    if not one_class:
        _check_classes(source)
    if limit is not None:
        few = limited(source, limit, seed)
        if not one_class and few.train.of_classes and len(np.unique(few.train.labels)) < 2:
            raise UserError(f"the {limit} rows drawn from {source.name} are all of one class: give a larger limit.")
        return few
    if source.fingerprint:
        return source
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    return replace(source, fingerprint=fingerprint(source.classes, splits))


NO_CORE = "--core is of sequences in a file or folder, read with --task next-item: leave it out."


def _load(name: str, columns: dict[str, str], wanted: Wanted, core: int = 0) -> Source:
    """The whole set, most without a fingerprint: pictures would be read for it that a limit leaves out."""
    entries = {entry.name: entry for entry in catalogue()}
    entry = entries.get(name)
    if entry is not None and entry.offline:
        _refuse(name, columns)
        if core:
            raise UserError(NO_CORE)
        module = import_module(f"weft.data.{name}")
        source: Source = getattr(module, name)()
        return source
    path = Path(name).expanduser()
    if entry is None and path.suffix.lower() == ".toml":
        _refuse(f"{name}, a file of several tasks,", columns)
        return _several(path)
    if entry is None and (path.exists() or suffix(path) or name.startswith((".", "/", "~"))):
        if wanted == "items":
            return interactions.read(path, columns, [], core)
        try:
            return _local(path, columns, wanted)
        except UserError as e:
            if wanted != "any":
                raise
            try:
                return interactions.read(path, columns, [])
            except UserError:
                raise e from None
    if entry is None and not HUB_ID.fullmatch(name):
        raise UserError(
            f'there is no data set called "{name}": weft data lists the known ones; a file or folder, or '
            "a hub id "
            f"owner/name, also does.{nearest(name, entries)}"
        )
    if wanted == "items":
        raise UserError(f"sequences of items are read from files: download {name}, and give --data its file or folder.")
    from weft.data.hub import from_hub, unknown

    return from_hub(entry or unknown(name), wanted, **columns)


def _several(path: Path) -> Source:
    """The source of a file of several tasks."""
    parts = []
    for task, entry in several.entries(path).items():
        if Path(entry.data).suffix.lower() == path.suffix.lower():
            raise UserError(f"[{task}] in {path}: {entry.data} is a file of tasks itself: write its tasks into this one.")
        local = path.parent / entry.data
        try:
            source = load(
                str(local) if local.exists() else entry.data,
                text=entry.text,
                pair=entry.pair,
                label=entry.label,
                key=entry.key,
                one_class=True,
            )
            source = source if entry.only is None else several.kept(source, entry.only, task)
            source = source if entry.limit is None else limited(source, entry.limit, 0)
        except NoColumn as e:
            raise UserError(f"[{task}] in {path}: {e.lacking}: {several.NAMED}") from None
        except UserError as e:
            raise UserError(f"[{task}] in {path}: {e}") from None
        parts.append(several.Part(task, source, tuple(entry.clients or ())))
    return several.joined(path.stem, parts)


def _check_classes(source: Source) -> None:
    trained = np.unique(source.train.labels).tolist()
    if len(trained) > 1 or not source.train.of_classes:
        return
    always = source.classes[trained[0]]
    if source.label_name is None:
        raise UserError(f"{source.name} has pictures of one class only ({always}): give it a folder for each class.")
    raise UserError(
        f'{source.name} has one class only in its training rows ("{source.label_name}" is always "{always}"): '
        "name another column with --label, or add rows of another class."
    )


def _refuse(name: str, columns: dict[str, str]) -> None:
    if columns:
        raise UserError(f"{name} has fixed columns, so leave --{next(iter(columns))} out.")


def _local(path: Path, asked: dict[str, str], wanted: Wanted) -> Source:
    called, image = path.resolve().name, asked.get("image")
    said: list[str] = []
    splits = None
    if path.is_dir() and saved_by_datasets(path):
        from weft.data.hub import from_disk

        return from_disk(path, wanted, **asked)
    if (tree := _pictures(path)) is not None:
        splits = indexes.read(tree, said, image)
        if splits is None:
            _refuse(f"{called}, a folder of pictures,", asked)
            return folders.load(tree, said)
    splits = splits or read(path, said, image)
    return assemble(called, splits, asked, said, wanted)


def _pictures(path: Path) -> Tree | None:
    """The folder or zip of pictures at a path, None where it is something else.

    Raises:
        UserError: a zip without pictures, or a broken one.
    """
    if path.is_dir():
        return folder if folders.recognised(folder := Folder(path)) else None
    if path.suffix.lower() != ".zip" or not path.is_file():
        return None
    tree = Zip(path)
    if not folders.pictures(tree):
        raise UserError(
            f"{path} holds no pictures that Weft reads: unpack it, and give --data the file or folder that was in it."
        )
    return tree


def _enough(limit: int) -> None:
    if limit < 2:
        raise UserError(f"a limit of {limit} rows leaves nothing to learn: give a larger one.")


def limited(source: Source, limit: int, seed: int) -> Source:
    """The source with at most ``limit`` rows in each split; ids stay what they were.

    Raises:
        UserError: that leaves fewer than two.
    """
    from weft.tensors.keyed import numpy_generator

    _enough(limit)

    def some(rows: Rows, split: str) -> Rows:
        if len(rows) <= limit:
            return rows
        few = numpy_generator(seed, "data/limit", split).permutation(len(rows))[:limit]
        return rows.take(np.sort(few))

    whole = {"train": source.train, "test": source.test, "validation": source.validation}
    if source.unseen:
        whole["unseen"] = Rows.concatenate([source.unseen[key] for key in sorted(source.unseen)])
    splits = {split: some(rows, split) for split, rows in whole.items() if rows is not None}
    drawn = {key: rows.take(np.isin(rows.ids, splits["unseen"].ids)) for key, rows in sorted(source.unseen.items())}
    return replace(
        source,
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        unseen={key: rows for key, rows in drawn.items() if len(rows)},
        fingerprint=fingerprint(source.classes, splits),
        notes=(*source.notes, f"{source.name}: at most {limit} rows of each split are used."),
    )
