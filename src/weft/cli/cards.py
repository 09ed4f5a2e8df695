"""How lists and cards look. Plain data in, a terminal of any width out; eighty columns are enough."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from weft.cli.grids import facts, grid
from weft.words import shown

if TYPE_CHECKING:
    from rich.console import Console

    from weft.backbones.short_names import Known
    from weft.cli.sizes import Sizes
    from weft.data.hub_sets import Entry
    from weft.federation.info import MethodInfo
    from weft.federation.method import Method
    from weft.methods.settings import Parameter

EVIDENCE = {
    "paper": "the paper",
    "code": "the paper's code",
    "reconstructed": "reconstructed from descriptions",
}
FAMILIES = {
    "reparameterized": "low-rank updates of weight matrices",
    "adapters": "small modules beside the layers",
    "prompts": "trainable tokens",
    "selective": "a subset of what the backbone has",
    "full": "everything, cheaply",
}
MORE = 2  # indentation of what belongs to a line above


def installed(package: str | None) -> bool:
    """Whether a package that carries weights is there, without importing it."""
    try:
        return package is not None and bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


# methods ----------------------------------------------------------------------------------------------------------------


def citation(info: MethodInfo) -> str:
    return info.paper + (f", arXiv {info.arxiv}" if info.arxiv else "")


def method_list(out: Console, infos: Sequence[MethodInfo]) -> None:
    """All methods by family: two lines each on a usual terminal."""
    width = max((len(i.slug) for i in infos), default=0)
    for family, what in FAMILIES.items():
        members = [i for i in infos if i.family == family]
        if not members:
            continue
        out.print(Text.assemble((family.capitalize(), "bold"), (f"  {what}", "dim")))
        table = grid("", "", head=False)
        table.columns[0].width = width
        for info in members:
            about = Text(info.title)
            notes = [citation(info), *info.challenges, f"evidence: {EVIDENCE.get(info.evidence, info.evidence)}"]
            about.append("\n" + " · ".join(notes), style="dim")
            about.append("\nsends ", style="dim").append(info.sends)
            table.add_row(Text(info.slug, style="bold cyan"), about)
        out.print(Padding(table, (0, 0, 1, MORE)))
    if not infos:
        out.print("No method is of that kind yet.")
        return
    out.print(Text("One in full: weft methods NAME --model minilm", style="dim"))


def method_card(out: Console, method: Method, fields: Sequence[Parameter], sizes: Sizes | None) -> None:
    """One method in full."""
    from weft.backbones.short_names import usual
    from weft.cli.sizes import size_tables

    info = method.info
    out.print(Text.assemble((info.slug, "bold cyan"), f"  {info.title}"))
    facts(
        out,
        {
            "paper": citation(info),
            "family": f"{info.family}: {FAMILIES.get(info.family, '')}".rstrip(": "),
            "addresses": ", ".join(info.challenges) or "-",
            "rests on": EVIDENCE.get(info.evidence, info.evidence),
            "differs from the paper": info.deviations or "not stated",
            "sends": info.sends,
            "predicts": "by view: " + ", ".join(info.views),
            "needs": ", ".join(info.needs) or "nothing special",
            **({"public rows": f"its server uses some (--public); without, {info.public}"} if info.public else {}),
            **({"noise": f"it is made for clients with noise (--privacy); without, {info.noise}"} if info.noise else {}),
            "server sees": "activations and gradients of each client by itself, whatever becomes of its updates"
            if "split" in info.needs
            else "only weighted sums of updates (secure aggregation is possible)"
            if method.sums
            else "each update by itself (secure aggregation is not possible)",
        },
    )
    out.print()
    out.print(Text("What the facts reveal", style="bold"))
    facts(
        out,
        {
            "  asked of clients": ", ".join((*info.asks, "number of training examples")),
            "  sent with updates": ", ".join(info.reveals) or "no facts beside the tensors",
            "  told to clients": ", ".join(info.tells) or "no facts beside the tensors",
        },
    )
    out.print()
    out.print(Text.assemble(("Settings", "bold"), ("  change one with --set method.NAME=VALUE", "dim")))
    table = grid("name", "default", "")
    for f in fields:
        table.add_row(Text(f.name, style="cyan"), Text(shown(f.default)), Text(f.doc.replace("``", ""), style="dim"))
    out.print(table)
    out.print()
    if sizes is None:
        out.print(Text(f"What is trained and sent: weft methods {info.slug} --model {usual(info.needs)}", style="dim"))
    else:
        size_tables(out, sizes)


# data and models ----------------------------------------------------------------------------------------------------------


def data_list(out: Console, entries: Sequence[Entry]) -> None:
    """All sets known by name: texts, prompts with answers, pictures, questions about them, sequences of items."""
    from weft.data.hub_sets import GENERATION, IMAGE, ITEMS, PREFERENCE, QUESTIONS

    kinds = {
        "Texts": [e for e in entries if e.kind not in (IMAGE, GENERATION, PREFERENCE, ITEMS, QUESTIONS)],
        "To generate from": [e for e in entries if e.kind in (GENERATION, PREFERENCE)],
        "Pictures": [e for e in entries if e.kind == IMAGE],
        "Questions about pictures": [e for e in entries if e.kind == QUESTIONS],
        "Sequences of items": [e for e in entries if e.kind == ITEMS],
    }
    width = max(len(e.name) for e in entries)
    for title, members in kinds.items():
        table = grid("name", ">classes", ">rows", "key", "verified", "where from")
        table.columns[0].width = width
        for e in members:
            where = Text("offline", style="green") if e.offline else Text("your folder" if e.hub_id is None else e.hub_id)
            table.add_row(
                Text(e.name, style="bold cyan"),
                "-" if e.kind in (GENERATION, PREFERENCE) else str(e.classes),
                _count(e.rows.get("train", 0)),
                Text(e.client_key or "-", style="" if e.client_key else "dim"),
                Text("no", style="yellow") if e.verified.startswith("not verified") else Text("yes", style="green"),
                where.append(f":{e.config}" if e.config else ""),
            )
        out.print(Text(title, style="bold"))
        out.print(table)
        out.print()
    out.print(
        Text(
            "rows: of the training split, about. key: what may serve as natural clients. verified: no = real code, but its id "
            "and columns were not checked against the hub. Any other hub id, your own csv, jsonl or parquet, and folders of "
            "pictures (class/picture or domain/class/picture) do too.",
            style="dim",
        )
    )
    out.print(Text("One set, dealt out: weft data pydocs --clients 8", style="dim"))


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1_000_000 else f"{n / 1000:.0f} k" if n >= 10_000 else f"{n:,}"


def model_list(out: Console, known: Sequence[Known]) -> None:
    """All backbones known by a short name."""
    table = grid("name", "kind", ">parameters", "where from")
    for k in known:
        size = f"{k.parameters / 1000:.1f} B" if k.parameters >= 1000 else f"{k.parameters:g} M"
        where = Text("comes with Weft", style="green") if k.shipped or k.made else Text(k.hub_id)
        if k.package:
            here = installed(k.package)
            note = "\noffline" if here else f"\noffline with {k.install()}"
            where.append(note, style="green" if here else "yellow")
        if k.gated:
            where.append("\nlicence to accept on the hub", style="dim")
        table.add_row(Text(k.name, style="bold cyan"), k.kind, size, where)
    out.print(table)
    out.print()
    out.print(
        Text(
            "Any Hugging Face encoder or decoder does: --model owner/name, or a local folder. Ids are from public documents and "
            "not verified against the hub.",
            style="dim",
        )
    )
