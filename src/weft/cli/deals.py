"""How a data set was dealt out: clients × labels, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.columns import Columns
from rich.text import Text

from weft.cli.grids import grid
from weft.data import table
from weft.words import count

if TYPE_CHECKING:
    from rich.console import Console

    from weft.data import FederatedData

MOST = 40  # clients named one by one
SHADES = ("dim", "", "bold", "bold cyan")  # of a cell, by its share of the client's rows


def deal_record(dealt: FederatedData) -> dict[str, Any]:
    """Counts of every client, split and class."""
    counts = table(dealt)
    return {
        "name": dealt.name,
        "fingerprint": dealt.fingerprint,
        "classes": list(dealt.classes),
        "clients": [
            {
                "id": client.id,
                "train": len(client.train),
                "val": len(client.val),
                "test": len(client.test),
                "labels": dict(zip(dealt.classes, map(int, row), strict=True)),
                "facts": dict(client.facts),
            }
            for client, row in zip(dealt.clients, counts, strict=True)
        ],
        "test": len(dealt.test),
        "val": len(dealt.val),
        "new_clients": [{"id": c.id, "test": len(c.test), "facts": dict(c.facts)} for c in dealt.unseen],
        "notes": list(dealt.notes),
    }


def show_deal(out: Console, dealt: FederatedData) -> None:
    """The client × label table: whole if it fits the terminal, else the largest labels of each client."""
    for note in dealt.notes:
        out.print(Text(note, style="dim"))
    counts = table(dealt)
    shown = min(len(dealt.clients), MOST)
    digits = max(len(f"{counts.max(initial=0)}"), len(str(len(dealt.classes))))
    fits = 16 + len(dealt.classes) * (digits + 2) <= out.width
    out.print()
    out.print((_matrix if fits else _largest)(dealt, counts, shown))
    if shown < len(dealt.clients):
        out.print(Text(f"… and {count(len(dealt.clients) - shown, 'more client')} (--json has them all)", style="dim"))
    if fits:
        out.print()
        out.print(Columns([Text(f"{i:>2} {name}", style="dim") for i, name in enumerate(dealt.classes)], padding=(0, 3)))
    rows = [len(c.train) for c in dealt.clients]
    out.print()
    out.print(
        f"{count(int(counts.sum()), 'row')} at {count(len(rows), 'client')} "
        f"(training {sum(rows):,}: {min(rows):,} to {max(rows):,} each), "
        f"global test {len(dealt.test):,}, validation {len(dealt.val):,}"
        + (f", {count(len(dealt.unseen), 'new client')} with {sum(len(c.test) for c in dealt.unseen):,}" if dealt.unseen else "")
        + "."
    )


def _matrix(dealt: FederatedData, counts: np.ndarray, shown: int) -> Any:
    found = grid("client", ">rows", *(f">{i}" for i in range(len(dealt.classes))))
    for client, row in list(zip(dealt.clients, counts, strict=True))[:shown]:
        total = max(int(row.sum()), 1)
        found.add_row(Text(client.id, style="cyan"), f"{row.sum():,}", *(_cell(int(n), n / total) for n in row))
    found.add_row("all", f"{counts.sum():,}", *(f"{n}" for n in counts.sum(0)), style="dim")
    return found


def _cell(n: int, share: float) -> Text:
    return Text("·", style="dim") if n == 0 else Text(str(n), style=SHADES[min(int(share * 8), 3)])


def _largest(dealt: FederatedData, counts: np.ndarray, shown: int) -> Any:
    found = grid("client", ">rows", ">labels", "largest")
    for client, row in list(zip(dealt.clients, counts, strict=True))[:shown]:
        top = [i for i in np.argsort(-row, kind="stable")[:3] if row[i]]
        about = ", ".join(f"{dealt.classes[i]} {100 * row[i] / row.sum():.0f} %" for i in top)
        found.add_row(Text(client.id, style="cyan"), f"{row.sum():,}", str(int((row > 0).sum())), about)
    return found
