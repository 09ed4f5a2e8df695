"""Files of keys: never overwritten, and secrets never where others may read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from weft.errors import UserError

SUM_KEY = "sums.ckks"
"""The key of encrypted sums, in the folder of a site's keys."""


def absent(paths: Sequence[Path], advice: str) -> None:
    """Raises: UserError: one of the files is there."""
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path} is there already and is never overwritten: {advice}.")


def own_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, or see that the one that is there is such a folder.

    Raises:
        UserError: it is open to others, or can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    except OSError as e:
        raise UserError(f"{folder} can't be made ({e.strerror}): give another folder with --folder.") from None
    if os.name == "posix" and mode & 0o077:
        raise UserError(
            f"{folder} is open to other users of this machine (mode {mode:o}): close it with chmod 700 {folder}, or give another "
            "folder with --folder."
        )


def write_new(path: Path, data: bytes, private: bool = False) -> None:
    """Make a file that is not there; a private one can be read by its owner alone, from its first byte.

    Raises:
        UserError: it is there.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    except FileExistsError:  # since it was looked for
        raise UserError(f"{path} is there already and is never overwritten: give another folder with --folder.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except BaseException:
        path.unlink()  # half a key would stand in the way of a whole one
        raise
