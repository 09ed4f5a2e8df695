"""Files of the CoNLL shared tasks: a word a line with its columns, the tag last, and a blank line after each sentence."""

from __future__ import annotations

import re
from pathlib import Path

from weft.data.separated import NEWLINE
from weft.errors import UserError

TAG = re.compile(r"O|[BIESLUM]-.+")
DOCUMENT = "-DOCSTART-"  # begins a document of CoNLL-2003, and is no word


def conll(path: Path, text: str) -> tuple[list[str], list[list[list[str]]]]:
    """Names and columns, ``tokens`` and ``tags``, of a file.

    Columns are parted by tabs, or else by blanks. A line that begins with ``# `` and has no tag is a comment, as in CoNLL-U.

    Raises:
        UserError: a line has a word and no tag.
    """
    words: list[list[str]] = []
    tags: list[list[str]] = []
    inside = False
    for number, line in enumerate(NEWLINE.split(text), 1):
        fields = line.rstrip().split("\t") if "\t" in line.strip() else line.split()
        if not line.strip() or fields[0] == DOCUMENT or (line.startswith("# ") and not TAG.fullmatch(fields[-1])):
            inside = False
            continue
        if len(fields) < 2 or not fields[0].strip():
            raise UserError(
                f'{path}:{number} holds "{line.strip():.40}": write a word and its tag in each line, with a tab between.'
            )
        if not inside:
            words.append([])
            tags.append([])
        inside = True
        words[-1].append(fields[0].strip())
        tags[-1].append(fields[-1].strip())
    return ["tokens", "tags"], [words, tags]
