"""Which files of a folder of pictures were taken, and which were not: plain data in, sentences for a person out.

A function returns the sentences that a person should read, none where all is well, or raises :class:`weft.errors.UserError` where
going on would be wrong. ``where`` is what a sentence calls the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from weft.checks.table_files import some
from weft.errors import UserError


def kinds(files: Iterable[str]) -> str:
    """How many files there are of each suffix, the most frequent first: ``12 .heic, 1 without suffix``."""
    found = Counter(PurePosixPath(file).suffix.lower() for file in files)
    return some(f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(found.items(), key=lambda kind: (-kind[1], kind[0])))


def left_out(where: str, files: Sequence[str]) -> list[str]:
    """Files beside the pictures that are none, by their names."""
    if not files:
        return []
    what = "file that is no picture" if len(files) == 1 else "files that are no pictures"
    return [f"{where}: {len(files)} {what} that Weft reads {'is' if len(files) == 1 else 'are'} left out ({kinds(files)})."]


def without_pictures(where: str, folders: Sequence[str]) -> list[str]:
    """Folders without any picture in them, which would be classes or domains otherwise."""
    if not folders:
        return []
    one = len(folders) == 1
    return [
        f"{where}: the folder{'' if one else 's'} {some(folders)} hold{'s' if one else ''} no picture that Weft reads, and "
        f"{'is' if one else 'are'} left out."
    ]


def some_pictures(where: str, pictures: int, files: Sequence[str]) -> None:
    """Refuse a folder of files of which none is a picture.

    Raises:
        UserError: there is none.
    """
    if files and not pictures:
        raise UserError(
            f"{where} holds no data file that Weft reads and no pictures, but {kinds(files)}: "
            "save pictures as png or jpg, for instance."
        )


def all_present(where: str, column: str, names: Sequence[str], absent: Sequence[str]) -> None:
    """Refuse a column that names pictures which don't exist.

    Args:
        names: that the column holds. absent: those of them that are no files.

    Raises:
        UserError: some are absent.
    """
    if absent:
        raise UserError(
            f'column "{column}" names {len(absent)} of {len(names)} pictures that do not exist, first {absent[0]}: '
            f"names of pictures are read from the folder of the table, {where}."
        )


def unlisted(where: str, index: str, pictures: int, absent: Sequence[str]) -> list[str]:
    """Pictures that lie in the folder and are not in its index.

    Args:
        pictures: how many lie there. absent: those that the index does not name.
    """
    if not absent:
        return []
    return [f"{where}: {len(absent)} of {pictures} pictures are not in {index} and are left out ({some(absent)})."]


def unused_table(where: str, table: str, columns: Collection[str], label: str | None) -> list[str]:
    """An index or metadata file that names no pictures, so that folders tell the classes.

    Args:
        label: its column of labels, if it has one: then it was meant to tell the classes.

    Raises:
        UserError: it has a label column.
    """
    listed = some(columns)
    if label is not None:
        raise UserError(
            f'{table} of {where} has the label column "{label}", but none that names pictures of the folder (its columns are '
            f"{listed}): name that column with --image, or rename the file if it is about something else."
        )
    return [f"{where}: {table} is not used, since no column of it names pictures of the folder (its columns are {listed})."]


def other_table(where: str, table: str, reason: str) -> list[str]:
    """A table beside the pictures under another name, that is not used."""
    return [f"{where}: {table} is not used: {reason}."]
