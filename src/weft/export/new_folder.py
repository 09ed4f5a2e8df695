"""A folder that is there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.errors import UserError
from weft.storage import files


def check_free(target: Path) -> None:
    """
    Raises:
        UserError: something is there already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: give a new folder.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which is called ``target`` once the block has ended well, and is gone otherwise.

    Raises:
        UserError: something is there already.
    """
    check_free(target)
    unfinished = target.with_name(target.name + files.TEMPORARY)
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_folder(unfinished)
    try:
        yield unfinished
        if target.exists():
            target.rmdir()
        files.rename(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
