"""``weft join --dry-run``: what would leave a site, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from weft import experiment as settings
from weft.cli.grids import grid
from weft.cli.sizes import measure, size_tables
from weft.devices import sized
from weft.federation.common_facts import EVERY
from weft.federation.exchange import uploaded
from weft.federation.layout import named
from weft.federation.rounds import adapted, begin
from weft.rules import plain
from weft.sites.joining import own_of
from weft.sites.resident import Resident
from weft.sites.terms import Terms
from weft.tensors.integers import Shape, sides

if TYPE_CHECKING:
    from rich.console import Console

SCALARS = (
    ("once", "the name of this site"),
    ("once", "how many rows it trains on"),
    ("every round", "how many rows it trained on, as its weight in the mean"),
    ("every round", "its mean loss while training"),
    ("every evaluation", "on its own test and validation rows: how many, how many right, the sum of the loss"),
)
TOP5 = (("every evaluation", "of how many of those rows the class is among the five most likely"),)
BY_CLASS = (("every evaluation", "for each class: how many of those rows have it, are given it, and are given it rightly"),)
LABELS = (
    "What is made by class tells which classes you have and how many rows of each, like a histogram of your labels; a prototype "
    "of few rows is near to those rows themselves."
)


def show(screen: Console, about: Mapping[str, Any], file: Path) -> None:
    """Load and count everything that would be sent; send nothing.

    Raises:
        UserError: whatever the site itself would refuse.
    """
    x = settings.resolve({"recipes": False}, settings.read(file)).experiment
    site = Resident(own_of(about), Path(about["folder"]), lambda words: screen.print(Text(words, style="dim"), soft_wrap=True))
    run = site.rehearse(Terms.of("0" * 32, x))
    method, bench, client = run.method, run.bench, run.client
    asks = method.info.asks
    screen.print()
    screen.print(Text.assemble(("Leaves this site: ", "bold"), method.info.sends, "."))
    screen.print(Text("Rows, texts, pictures, file names and columns never do.", style="dim"))
    screen.print()
    server = begin(method, bench, [client.info(asks)], x.rounds)
    method.start(server)
    table = grid("tensor", ">shape", "what it is")
    info = client.info(asks)
    made = plain(method).uploads(server, info)  # no values of parts
    leaving: dict[str, Shape] = {}
    of_rule: set[str] = set()
    parts = adapted(method, bench, info)
    of_norms = {n for n, _, _ in named({p: own for p, own in parts.items() if own[0].mode == "normalises"}, bench.backbone)}
    for t in range(2):  # a rule may have exchanges of two kinds
        server.round = method.plan(server, t) or server.round
        leaving |= uploaded(method, server, info, adapted(method, bench, info))
        of_rule |= method.uploads(server, info).keys() - made.keys()
    for name, shape in leaving.items():
        words = "made from your rows" if name in made else "trained values"
        words = "sums over your rows" if name in of_rule else words
        words = "means and variances over your rows" if name in of_norms else words
        table.add_row(Text(name, style="cyan"), "×".join("any" if d is None else str(d) for d in sides(shape)), words)
    screen.print(table)
    screen.print()
    table = grid("when", "what else is said")
    for when, what in (*SCALARS, *(TOP5 if "top5" in x.metrics else ()), *(BY_CLASS if x.class_counts else ())):
        table.add_row(when, what)
    for name in (n for n in asks if not n.startswith(EVERY)):
        table.add_row("once", f"{name}: {sized(method.profile)(0, client.facts).get(name, 'nothing')}")
    for name in method.info.reveals:
        table.add_row("every round", f"{name}, as a fact of your rows")
    screen.print(table)
    screen.print()
    size_tables(screen, measure(method, bench, [client]))
    if made or method.info.reveals or x.class_counts:
        screen.print(Text(LABELS), soft_wrap=True)
    screen.print("Nothing was sent.")
