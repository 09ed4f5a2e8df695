"""What was read from a table, compared with what was in the file: plain data in, sentences for a person out.

A function returns the sentences that a person should read, none where all is well, or raises :class:`weft.errors.UserError` where
going on would be wrong. ``where`` is what a sentence calls the file or the set.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from weft.errors import UserError, printable
from weft.words import count

SHOWN = 5  # examples in a sentence


def some(names: Iterable[str]) -> str:
    """A few names, in their order."""
    found = list(names)
    return ", ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


# files ----------------------------------------------------------------------------------------------------------------


def file_name(path: str) -> None:
    """Refuse a name that is no text, as the bytes of another encoding are.

    Raises:
        UserError: it holds a lone surrogate, which is how Python keeps a byte that is not UTF-8.
    """
    if not _is_utf_8(path):
        raise UserError(f'the name of the file or folder "{path}" is not UTF-8: rename it.')


def typed(text: str) -> None:
    """Refuse an argument of the command line that is no text.

    Raises:
        UserError: as above.
    """
    if not _is_utf_8(text):
        raise UserError(f'"{text}" is not UTF-8: give texts and names of files in that encoding.')


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def files_left(where: str, read: Sequence[str], found: Sequence[str]) -> list[str]:
    """Tables of a folder that were not read beside those that were."""
    left = [name for name in found if name not in read]
    if not left:
        return []
    return [f"{where}: {some(read)} {_are(read)} read; {some(left)} {_are(left)} not."]


def all_shards(where: str, split: str, numbers: Collection[tuple[int, int]]) -> None:
    """Refuse a split of which a file is missing.

    Args:
        numbers: of each file its own number (from 0) and how many there should be, as in ``train-00000-of-00003``.

    Raises:
        UserError: a number is missing.
    """
    for total in {of for _, of in numbers}:
        missing = sorted(set(range(total)) - {i for i, of in numbers if of == total})
        if missing:
            numbered = some(map(str, missing))
            raise UserError(
                f"{where} lacks {len(missing)} of the {total} files of its {split} split (number {numbered}): get them too."
            )


def shards(where: str, columns: Mapping[str, Collection[str]]) -> list[str]:
    """Files of one split (name -> its columns) that lack columns which others have."""
    every = list(dict.fromkeys(name for own in columns.values() for name in own))
    lacking = {file: [name for name in every if name not in own] for file, own in columns.items()}
    return [f"{where}: {file} lacks {some(names)}, which other files have." for file, names in lacking.items() if names]


# columns and records ----------------------------------------------------------------------------------------------------


def same_names(where: str, names: Sequence[str]) -> None:
    """Raises:
    UserError: two columns have one name.
    """
    twice = list(dict.fromkeys(name for name in names if names.count(name) > 1))
    if twice:
        raise UserError(f"{where} has two columns of the same name in its header ({some(twice)}): rename one.")


def fields(where: str, line: int, here: int, header: int, *, by_lines: bool = False) -> None:
    """Refuse a record with more or fewer fields than there are columns.

    Args:
        line: on which the record begins. here: its fields. header: fields of the header.
        by_lines: whether no field goes on in the next line.

    Raises:
        UserError: the numbers differ.
    """
    if here != header:
        look = (
            "a field can't go on in the next line of a tsv file" if by_lines else "look for a stray delimiter or quotation mark"
        )
        raise UserError(f"{where}:{line} has {count(here, 'field')}, but the header has {header}: {look}.")


def unclosed(where: str, line: int, reason: object) -> UserError:
    """What to raise for a record that can't be cut into fields, with the line on which it begins."""
    return UserError(
        f"{where}:{line} is not readable as a table ({reason}): look for a stray quotation mark in the row that begins there."
    )


def across_lines(where: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Records with a field that goes on in the next line: meant so, or swallowed by a stray quotation mark.

    Args:
        spans: of each such record the line on which it begins, and the number of its lines.
    """
    if not spans:
        return []
    lines, have = sum(n for _, n in spans), "has" if len(spans) == 1 else "have"
    return [
        f"{where}: {count(len(spans), 'row')} (of {lines} lines) {have} a quoted field that goes on in the next line, "
        f"first in line {spans[0][0]}; a stray quotation mark would do the same."
    ]


def repeated_header(where: str, rows: int) -> list[str]:
    """Rows that say what the header says, as files joined end to end have them."""
    if not rows:
        return []
    return [f"{where}: left out {count(rows, 'row')} that only {'repeats' if rows == 1 else 'repeat'} the header."]


def nameless(where: str, left_out: Sequence[tuple[int, str]], called: Sequence[str]) -> list[str]:
    """Columns without a name in the header.

    Args:
        left_out: place (from 1) and content (``numbers of rows`` or ``nothing``) of those that are not used. called: what others
            are called.
    """
    notes = [
        f"{where}: column {place} has no name and holds {content}; it is left out."
        for place, content in left_out
        if content != EMPTY
    ]
    empty = [str(place) for place, content in left_out if content == EMPTY]
    if empty:
        notes.append(f"{where}: {count(len(empty), 'column')} without a name and without a value ({some(empty)}) left out.")
    notes += [f'{where}: a column without a name is called "{name}".' for name in called]
    return notes


EMPTY, NUMBERS = "nothing", "whole numbers, such as those of rows"


def replaced(where: str, characters: int, cells: int) -> list[str]:
    """Halves of a character that stand alone (lone surrogates), which no file and no tokenizer can take."""
    if not characters:
        return []
    return [
        f"{where}: {count(characters, 'broken character')} in {count(cells, 'value')} replaced with \N{REPLACEMENT CHARACTER}."
    ]


def sheets(where: str, titles: Sequence[str]) -> list[str]:
    """Sheets of a workbook, of which the first is read."""
    return [f'{where}: the sheet "{titles[0]}" is read; {some(titles[1:])} {_are(titles[1:])} not.'] if len(titles) > 1 else []


def error_cells(where: str, cells: int) -> list[str]:
    """Cells of a workbook with an error such as #N/A."""
    return (
        [f"{where}: {count(cells, 'cell')} with an error, such as #N/A, {'is' if cells == 1 else 'are'} taken as empty."]
        if cells
        else []
    )


# labels and keys --------------------------------------------------------------------------------------------------------


def dropped(where: str, split: str, rows: int, used: int, content: str) -> list[str]:
    """Rows of a split that can't be used.

    Args:
        rows: of the table. used: of them. content: ``text`` or ``picture``.
    """
    if rows == used:
        return []
    return [f"{where}: dropped {rows - used} of {rows} {split} rows without a {content} or a label in use."]


def respelled(where: str, column: str, spellings: Mapping[str, Collection[str]]) -> list[str]:
    """Classes that are written in several ways, such as 0 and 0.0, or otherwise than they are called.

    Args:
        spellings: of each class, as they stand in the files.
    """
    other = [(*found, name) for name, found in spellings.items() if len(found) == 1]
    other = [(way, name) for way, name in other if unicodedata.normalize("NFC", way) != name]
    if other:
        way, name = other[0]
        return [
            f'{where}: labels such as "{printable(way)}" in column "{column}" stand for "{name}".',
            *_joined(where, column, spellings),
        ]
    return _joined(where, column, spellings)


def _joined(where: str, column: str, spellings: Mapping[str, Collection[str]]) -> list[str]:
    several = {name: sorted(found) for name, found in spellings.items() if len(found) > 1}
    if not several:
        return []
    name, found = next(iter(several.items()))
    ways = " and ".join(f'"{_apart(way, name)}"' for way in found[:SHOWN])
    more = f"; so are {some(list(several)[1:])}" if len(several) > 1 else ""
    return [f'{where}: {ways} in column "{column}" are one class, "{name}"{more}.']


def _apart(way: str, name: str) -> str:
    """A spelling, with escapes where it would print as its class does."""
    return ascii(way)[1:-1] if way != name and unicodedata.normalize("NFC", way) == name else printable(way)


def look_alike(where: str, rows: Mapping[str, int]) -> list[str]:
    """Classes that only capitals, blanks or invisible characters tell apart.

    Args:
        rows: of each class.
    """
    groups: dict[str, list[str]] = {}
    for name in rows:
        groups.setdefault(_folded(name), []).append(name)
    told = {name: f'"{printable(name)}" ({count(n, "row")})' for name, n in rows.items()}
    return [
        f"{where}: the classes {' and '.join(told[name] for name in group[:SHOWN])} look alike: spell them in one way if "
        "they are one class."
        for group in groups.values()
        if len(group) > 1
    ]


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name)
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").casefold().split())


def kinds(where: str, column: str, numbers: Mapping[str, int], words: Mapping[str, int]) -> list[str]:
    """Labels of which most are numbers and a few are words: ``unknown``, or a header in the middle of a file.

    Args:
        numbers, words: rows of each class that is one.
    """
    few, all_rows = sum(words.values()), sum(words.values()) + sum(numbers.values())
    if not words or not numbers or few * 10 > all_rows:
        return []
    told = some(f'"{word}" ({count(n, "row")})' for word, n in words.items())
    return [f'{where}: column "{column}" holds numbers, but for {told}.']


def hidden(where: str, split: str) -> list[str]:
    """A split whose labels are kept back, as those of competitions are."""
    return [f"{where}: the {split} split has no labels and is not used."]


def keyless(where: str, key: str, rows: int, of: int) -> list[str]:
    """Training rows that do not tell their natural client."""
    if not rows:
        return []
    return [f"{where}: {rows} of {of} training rows have no {key}."]


def new_keys(where: str, key: str | None, train: Iterable[str] | None, test: Iterable[str] | None) -> list[str]:
    """Natural clients of the test split that have no training rows."""
    new = sorted(set(test or ()) - set(train or ()))
    occur = "occurs" if len(new) == 1 else "occur"
    return [f"{where}: {count(len(new), 'value')} of {key} {occur} only in the test split: {some(new)}."] if new else []
