"""Where people read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 20
"""Columns of a terminal below which nothing could be read."""


def visible(text: str) -> str:
    """What a model or a stranger wrote, without what a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def out(stderr: bool = False) -> Console:
    """Where people read: without colours where it is not a terminal, or NO_COLOR is set; a notebook gets plain lines too."""
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    narrow = columns.isdecimal() and int(columns) < NARROWEST  # 0 is what some terminals say that don't know
    return Console(stderr=stderr, highlight=False, force_jupyter=False, width=NARROWEST if narrow else None)
