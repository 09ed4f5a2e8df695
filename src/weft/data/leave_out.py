"""Leaving natural keys out of training, as leave-one-domain-out does: their rows are tested on as new clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from weft.data.rows import Rows, Source
from weft.data.spelling import spelled
from weft.errors import UserError, nearest

NO_KEY = "name its column with --key, or lay pictures out as domain/class/picture"


def leave_out(source: Source, keys: Sequence[str]) -> Source:
    """The source with every row of these natural keys, of whatever split, among its ``unseen`` rows.

    Raises:
        UserError: the source has no natural key, or no such value of it, or too little is left to train on.
    """
    if not keys:
        return source
    if source.train.keys is None:
        raise UserError(f"{source.name} has no natural key to leave {keys[0]} out by: {NO_KEY}.")
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    keyed = [rows for rows in splits.values() if rows is not None and rows.keys is not None]
    known = sorted({*source.unseen, *(key for rows in keyed for key in rows.keys or () if key)})
    keys = [key if key in known else spelled(key) or key for key in keys]
    for key in keys:
        if key not in known:
            there = ", ".join(known[:10]) + (" …" if len(known) > 10 else "")
            pieces = [piece.strip() for piece in key.split(",")]
            hint = nearest(key, known)
            if len(pieces) > 1 and {*pieces} & {*known}:
                hint = f" Repeat --leave-out for each: --leave-out {' --leave-out '.join(pieces)}."
            raise UserError(f'no row of {source.name} has the {source.key_name} "{key}": there are {there}.{hint}')
    new = [key for key in dict.fromkeys(keys) if key not in source.unseen]
    unseen = {key: Rows.concatenate([rows.take(_of(rows, [key])) for rows in keyed]) for key in new}
    left = {split: _without(rows, new) for split, rows in splits.items()}
    train = left["train"]
    if train is None or (train.of_classes and len(np.unique(train.labels)) < 2):
        raise UserError(
            f"without {', '.join(keys)}, {source.name} has {'nothing' if train is None else 'one class only'} to train on: leave "
            f"fewer values of {source.key_name} out."
        )
    said = [f"{source.name}: {key} is never trained on, but tested on as a new client ({len(unseen[key])} rows)." for key in new]
    said += [
        f"{source.name}: its {split} split does not tell the {source.key_name} of a row, so it may hold rows of what is left out."
        for split, rows in splits.items()
        if rows is not None and rows.keys is None
    ]
    return replace(
        source,
        train=train,
        test=left["test"],
        validation=left["validation"],
        unseen={**source.unseen, **unseen},
        notes=(*source.notes, *said),
    )


def _of(rows: Rows, keys: Collection[str]) -> np.ndarray:
    return np.isin(np.asarray(rows.keys, dtype=str), list(keys))


def _without(rows: Rows | None, keys: Collection[str]) -> Rows | None:
    """The rows of other keys, or None where none is left. A split that does not tell keys apart stays as it is."""
    if rows is None or rows.keys is None or not keys:
        return rows
    kept = rows.take(~_of(rows, keys))
    return kept if len(kept) else None
