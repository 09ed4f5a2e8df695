"""Data given from Python instead of by name: frames, and sets of the ``datasets`` library, read as files are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.checks import given_rows as checks
from weft.data.assemble import assemble
from weft.data.columns import Table, Wanted
from weft.data.local import SPLIT_OF
from weft.data.pictures import resolved
from weft.data.rows import FederatedData, Source
from weft.errors import UserError

KINDS = (
    "a name, a path, a pandas or polars frame, a pyarrow table, a set of the datasets library, weft.data.Source or "
    "weft.data.FederatedData"
)


def name_of(data: Any) -> str:
    """What sentences and folders call data that came without a name.

    Raises:
        UserError: they are nothing that can be read.
    """
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, Source | FederatedData):
        return data.name
    if _of_datasets(data):
        first = next(iter(data.values()), None) if isinstance(data, Mapping) else data
        return str(getattr(getattr(first, "info", None), "dataset_name", None) or "dataset")
    if isinstance(data, Mapping) and data and all(_is_frame(frame) or _of_datasets(frame) for frame in data.values()):
        return "frames"
    if _is_frame(data):
        return "frame"
    raise UserError(f"data are a {type(data).__name__}: give {KINDS}.")


def read(data: Any, asked: Mapping[str, str], wanted: Wanted = "classes") -> Source:
    """The source in a frame or set, or in a mapping of one for each split; columns are guessed as in files.

    The rows of a frame are taken in their order; its index is not looked at.

    Raises:
        UserError: it is none of these, or lacks the columns.
    """
    name = name_of(data)
    if _of_datasets(data) or (isinstance(data, Mapping) and any(_of_datasets(part) for part in data.values())):
        from weft.data.hub import from_object

        return from_object(name, data, wanted, **asked)
    frames = data if isinstance(data, Mapping) else {"train": data}
    tables: dict[str, Table] = {}
    for called, frame in frames.items():
        split = SPLIT_OF.get(str(called).lower())
        if split is None or split in tables:
            raise UserError(f'data have a part "{called}": call the parts train, test and validation.')
        tables[split] = resolved(_table(frame), Path(), asked.get("image"))
    if "train" not in tables:
        raise UserError(f"data have a part {' and one '.join(tables)} but none called train: name the rows to train on so.")
    return assemble(name, tables, asked, [], wanted)


def _of_datasets(data: Any) -> bool:
    return type(data).__module__.split(".")[0] == "datasets"


def _is_frame(data: Any) -> bool:
    return not isinstance(data, Mapping) and any(hasattr(data, name) for name in ("to_pydict", "iloc", "iter_columns"))


def _table(frame: Any) -> Table:
    """The columns of a frame by position, with None for what is missing."""
    if hasattr(frame, "to_pydict"):  # of pyarrow
        columns = frame.to_pydict()
    elif hasattr(frame, "iloc"):  # of pandas
        columns = {str(name): frame.iloc[:, i].tolist() for i, name in enumerate(frame.columns)}
        if len(columns) < frame.shape[1]:
            raise UserError(f"the frame has two columns of the same name ({', '.join(map(str, frame.columns))}): rename one.")
    else:  # of polars
        columns = {column.name: column.to_list() for column in frame.iter_columns()}
    return {name: [None if checks.missing(value) else value for value in values] for name, values in columns.items()}
