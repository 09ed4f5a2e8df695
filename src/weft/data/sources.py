"""Loading a data set by whatever a person types: a catalogue name, a hub id, or a local file or folder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from weft.data.columns import build, choose
from weft.data.hub_sets import catalogue
from weft.data.local import read, suffix
from weft.data.pydocs import pydocs
from weft.data.rows import Rows, Source, fingerprint
from weft.errors import UserError, nearest

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load(
    name: str,
    *,
    seed: int = 0,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    key: str | None = None,
    limit: int | None = None,
) -> Source:
    """Load the set called ``name``: a catalogue name, a local file or folder, or a hub id
    ``owner/name[:config]``.

    text, pair, label, key: the columns of the text, of a second text, of the label and of the natural client,
        where the guess is wrong; guesses are in ``notes``.
    limit: at most this many rows of each split, drawn with ``seed`` (held-out clients count as one split).

    Raises UserError for an unknown name, a missing or unreadable file, an absent column, and a set without
    two classes.
    """
    if limit is not None and limit < 2:
        raise UserError(f"a limit of {limit} rows leaves nothing to learn: give a larger one.")
    source = _load(name, text=text, pair=pair, label=label, key=key)
    return source if limit is None else _limited(source, limit, seed)


def _load(name: str, *, text: str | None, pair: str | None, label: str | None, key: str | None) -> Source:
    entries = {entry.name: entry for entry in catalogue()}
    if name == "pydocs":
        if asked := [flag for flag, c in (("text", text), ("pair", pair), ("label", label), ("key", key)) if c]:
            raise UserError(f"pydocs has fixed columns, so leave --{asked[0]} out.")
        return pydocs()
    path = Path(name).expanduser()
    if name not in entries and (path.exists() or suffix(path) or name.startswith((".", "/", "~"))):
        splits = read(path)
        called = path.resolve().name
        columns = choose(splits["train"], called, text=text, pair=pair, label=label, key=key)
        for split, table in splits.items():
            if absent := [c for c in (columns.text, columns.pair, columns.label) if c is not None and c not in table]:
                raise UserError(f'the {split} file of {called} has no column "{absent[0]}", which its train file has.')
        return build(called, splits, columns)
    if name not in entries and not HUB_ID.fullmatch(name):
        raise UserError(
            f'there is no data set called "{name}": weft data lists the known ones; a file or folder, or '
            "a hub id "
            f"owner/name, also does.{nearest(name, entries)}"
        )
    from weft.data.hub import from_hub, unknown

    return from_hub(entries.get(name) or unknown(name), text=text, pair=pair, label=label, key=key)


def _limited(source: Source, limit: int, seed: int) -> Source:
    """The source with at most ``limit`` rows in each split; ids stay what they were."""
    from weft.tensors.keyed import numpy_generator

    def some(rows: Rows, split: str) -> Rows:
        if len(rows) <= limit:
            return rows
        drawn = numpy_generator(seed, "data/limit", split).permutation(len(rows))[:limit]
        return rows.take(np.sort(drawn))

    whole = {"train": source.train, "test": source.test, "validation": source.validation}
    if source.unseen:
        whole["unseen"] = Rows.concatenate([source.unseen[key] for key in sorted(source.unseen)])
    splits = {split: some(rows, split) for split, rows in whole.items() if rows is not None}
    if len(np.unique(splits["train"].labels)) < 2:
        raise UserError(f"the {limit} rows drawn from {source.name} are all of one class: give a larger limit.")
    held_out = splits.get("unseen")
    key = np.array(held_out.keys if held_out is not None else [])
    return replace(
        source,
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        unseen={name: held_out.take(key == name) for name in sorted(set(key.tolist()))} if held_out is not None else {},
        fingerprint=fingerprint(source.classes, splits),
        notes=(*source.notes, f"{source.name}: at most {limit} rows of each split are used."),
    )
