"""Tables and values as every command prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console


def grid(*columns: str, head: bool = True) -> Table:
    """A table without a frame. A column called ``>x`` is aligned right."""
    table = Table(
        box=box.SIMPLE_HEAD if head else None,
        pad_edge=False,
        show_edge=False,
        show_header=head,
        header_style="dim",
        border_style="dim",
        padding=(0, 1 if head else 2, 0, 0),
    )
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def facts(out: Console, values: Mapping[str, Any]) -> None:
    """Name and value, line by line."""
    table = grid("", "", head=False)
    for name, value in values.items():
        table.add_row(Text(name, style="dim"), Text(str(value)))
    out.print(table)
