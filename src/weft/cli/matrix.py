"""``weft methods --privacy``: which mechanism keeps its promise over which method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from weft.cli.grids import grid

if TYPE_CHECKING:
    from rich.console import Console


def cells(slugs: Sequence[str]) -> dict[str, dict[str, str]]:
    """Slug -> mechanism -> why it is unsound there, with the method's default settings; ``""`` where it is sound."""
    from weft.federation.soundness import unsound
    from weft.methods import registry
    from weft.privacy.hiding import MECHANISMS

    methods = {slug: registry.build(slug) for slug in slugs}
    return {slug: {name: unsound(m, link()) for name, link in MECHANISMS.items()} for slug, m in methods.items()}


def show(out: Console, slugs: Sequence[str], as_json: bool) -> None:
    """The matrix, and the reasons below it."""
    from weft.cli.listings import show_json

    found = cells(slugs)
    if as_json:
        show_json(found)
        return
    names = list(next(iter(found.values()), {}))
    table = grid("method", *names)
    for slug, row in found.items():
        table.add_row(Text(slug, style="cyan"), *("no" if row[name] else "yes" for name in names))
    out.print(table)
    out.print()
    for slug, row in found.items():
        for why in dict.fromkeys(filter(None, row.values())):
            without = ", ".join(name for name in names if row[name] == why)
            out.print(Text(f"{slug} {why}: not under {without}."), soft_wrap=not out.is_terminal)
