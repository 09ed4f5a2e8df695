"""What a method trains and sends on a backbone, counted by rehearsing a few rounds, so that it holds for any method."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from weft.devices import sized
from weft.words import count

if TYPE_CHECKING:
    from rich.console import Console

    from weft.engines.setup import Settings
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.method import Method

ROUNDS = 3
SERVERS = "at the server"
"""In the place of a scope, of a part that no client has."""


@dataclass(frozen=True)
class PartSize:
    """One part of one client, or of the server alone.

    Attributes:
        scope: its word, or "role: word" for each role that differs; ``at the server`` of what no client has.
        sites: how many places. elements: numbers in all.
    """

    part: str
    kind: str
    scope: str
    sites: int
    elements: int


@dataclass(frozen=True)
class RoundBytes:
    """Payload bytes of one client in one round, by part, before any codec."""

    round: int
    down: dict[str, int]
    up: dict[str, int]


@dataclass(frozen=True)
class Sizes:
    """A method on a backbone.

    Attributes:
        parameters: of the frozen backbone. cohort: clients that take part in a round. classes: of the head.
        memory: bytes that training is estimated to take, with ``pack`` clients to a pass; free: bytes there are. server: those of
            the server and of messages at most. apart: they lie in main memory, and the others in a GPU's.
    """

    model: str
    parameters: int
    cohort: int
    classes: int
    parts: list[PartSize]
    rounds: list[RoundBytes]
    memory: int
    pack: int
    free: int
    server: int
    apart: bool


def made_up(model: str, clients: int, classes: int, needs: Collection[str] = ()) -> tuple[Bench, list[ClientState]]:
    """A backbone and clients of one row each, for sizes without data.

    Args:
        needs: of the method: as in a run, one that needs a ``head`` gets a linear one on a CLIP too, and one of ``label words`` a
            model that fills them in, one of ``items`` a network over them, one of ``hidden words`` a model that finds them, one
            of a ``connector`` a model that writes about pictures.

    Raises:
        UserError: the backbone can't be loaded.
    """
    import numpy as np

    from weft.backbones.load import load
    from weft.backbones.options import task_for
    from weft.backbones.run_table import tabulate
    from weft.data.images import Images
    from weft.data.rows import BOTH, Rows
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState, Splits
    from weft.tasks.kinds import CLASSES, GENERATION, MASKED, NEXT_ITEM, QUESTIONS, make

    task = task_for(needs)
    writes = task in (MASKED, GENERATION)
    names = ("text",) if writes else tuple(map(str, range(classes)))
    backbone = load(model, classes=names, task=task)
    each, none = np.arange(clients), np.zeros(0, dtype=np.int64)
    texts, images = {"texts": ["a row"] * clients}, {"images": Images([np.zeros((8, 8, 3), np.uint8)] * clients)}
    content: dict[str, Any] = {
        "texts": texts,
        "images": images,
        BOTH: {**texts, **images},
        "items": {"items": [(0,)] * clients},
    }
    answers: dict[str, Any] = {"answers": ["and what is said of it"] * clients} if writes else {}
    rows = Rows(labels=each % classes, ids=each, **content[backbone.reads], **answers)
    kind = task if writes or task == NEXT_ITEM else QUESTIONS if backbone.reads == BOTH else CLASSES
    bench = Bench(backbone, make(names, kind), tabulate(backbone, rows), 0)
    digits = len(str(clients - 1))
    return bench, [ClientState(f"c{i:0{digits}d}", 1, data=Splits(each[i : i + 1], none, none)) for i in range(clients)]


def measure(
    method: Method,
    bench: Bench,
    clients: list[ClientState],
    settings: Settings | None = None,
    public: Bench | None = None,
) -> Sizes:
    """Sizes of ``method``; rounds are rehearsed with one step on one row of each client, as sizes ask for no more.

    Args:
        public: rows that the server trains on.

    Raises:
        UserError: the backbone lacks what the method needs, or no memory holds it.
    """
    import numpy as np

    from weft.communication.codecs import codec
    from weft.communication.ledger import Ledger
    from weft.engines.engine import Engine
    from weft.engines.noise_budget import Spending
    from weft.engines.setup import Settings, Setup, Tests
    from weft.engines.stepwise import simulated
    from weft.federation.client import Splits
    from weft.federation.exchange import Exchange
    from weft.federation.rounds import adapted, begin
    from weft.runs.suited import suited
    from weft.storage.store import ClientStore, Spool

    for each in (bench, *bench.others.values()):
        suited(method, each)
    privacy = bench.privacy.rehearsed()
    others = {name: dataclasses.replace(other, privacy=privacy) for name, other in bench.others.items()}
    bench = dataclasses.replace(bench, privacy=privacy, others=others)
    none = np.zeros(0, dtype=np.int64)
    ledger = Ledger()

    def engine(of: Method, people: list[ClientState], folder: str, public: Bench | None = None) -> Engine:
        server = begin(of, bench, [c.info(of.info.asks) for c in people], ROUNDS, public=public)
        of.start(server)
        setup = Setup(
            of,
            bench,
            [(server, people)],
            dataclasses.replace(settings or Settings(), rounds=ROUNDS, dropout=0.0),
            Exchange(of, codec("identity"), ledger),
            ClientStore(Path(folder) / "clients"),
            Spool(Path(folder) / "updates"),
            Tests(none, none),
            spending=None if privacy.central is None else Spending(Path(folder) / "privacy.json", privacy),
        )
        return Engine(setup, simulated(setup))

    facts = sized(method.profile)
    people = [
        dataclasses.replace(c, facts=facts(i, c.facts), data=Splits(c.data.train[:1], none, none), n=min(c.n, 1))
        for i, c in enumerate(clients)
    ]
    rounds, cohort = [], 0
    with tempfile.TemporaryDirectory() as folder:
        real = engine(method, people, folder)
        capacity = real.turns.capacity
        short = engine(method.rehearsed(), people, folder, public)
        for t in range(ROUNDS):
            record = short.round(t)
            if record is None:
                break
            cohort = len(record["cohort"])
            rounds.append(RoundBytes(t, *(_each(ledger, t, d, cohort) for d in ("down", "up"))))
    return Sizes(
        model=bench.backbone.name,
        parameters=bench.backbone.parameters,
        cohort=cohort,
        classes=len(bench.task.classes),
        parts=_parts(
            real.setup.federations[0][0].adaptation, {n for c in people for n in adapted(method, bench, c)}, bench.backbone
        ),
        rounds=rounds,
        memory=capacity.guess.total(capacity.k),
        pack=capacity.k,
        free=capacity.guess.available,
        server=capacity.guess.server,
        apart=capacity.guess.apart,
    )


def _each(ledger: Any, t: int, direction: Any, clients: int) -> dict[str, int]:
    return {part: round(n / clients) for part, n in ledger.totals(round=t, direction=direction).parts.items()}


def _parts(adaptation: Any, theirs: set[str], backbone: Any) -> list[PartSize]:
    """
    Args:
        theirs: names of the parts that clients have.
    """
    from collections.abc import Mapping

    found = []
    for name, (part, scope) in adaptation.items():
        sites = part.sites(backbone)
        inits = [init for site in sites for init in part.tensors(backbone, site).values()]
        words = ", ".join(f"{role} {s.word}" for role, s in scope.items()) if isinstance(scope, Mapping) else scope.word
        words = words if name in theirs else SERVERS
        elements = sum(init.numel for init in inits if init.kind != "lowrank")
        found.append(PartSize(name, type(part).__name__, words, len(sites), elements))
    return found


def size_tables(out: Console, sizes: Sizes) -> None:
    """Parts, then bytes per client and round."""
    from weft.cli.grids import grid
    from weft.communication.ledger import format_bytes

    trained = sum(p.elements for p in sizes.parts if p.scope != SERVERS)
    share = f"{float(f'{100 * trained / sizes.parameters:.2g}'):g} % of its {sizes.parameters:,} parameters"
    out.print(Text.assemble((f"On {sizes.model}", "bold"), (f"  {trained:,} elements per client, {share}", "dim")))
    table = grid("part", "kind", "scope", ">sites", ">elements")
    for p in sizes.parts:
        elements = f"{p.elements:,}" if p.elements else "grows"
        table.add_row(Text(p.part, style="cyan"), p.kind, p.scope, str(p.sites), elements)
    out.print(table)
    if not sizes.rounds:
        return
    out.print()
    people = count(sizes.cohort, "client")
    out.print(
        Text.assemble(
            ("Bytes per client and round", "bold"),
            (f"  {people}, {count(sizes.classes, 'class', 'classes')}, no codec, without headers", "dim"),
        )
    )
    names = list(dict.fromkeys(p for r in sizes.rounds for p in (*r.down, *r.up)))
    groups = alike(sizes.rounds)
    table = grid("part", *(f">{when} {way}" for when, _ in groups for way in ("down", "up")))
    for name in names:
        cells = [side.get(name, 0) for _, r in groups for side in (r.down, r.up)]
        if any(cells):
            table.add_row(Text(name, style="cyan"), *map(format_bytes, cells))
    table.add_row("all", *(format_bytes(sum(side.values())) for _, r in groups for side in (r.down, r.up)))
    out.print(table)
    out.print()
    if any(p.scope == SERVERS for p in sizes.parts):
        out.print(Text("Activations and gradients travel in each step; these are of one, on one short row.", style="dim"))
    if not any(sizes.rounds[0].down.values()):
        words = "Start values are the backbone's own, or drawn from a common seed, so nothing goes down in round 1."
        out.print(Text(words, style="dim"))


def alike(rounds: Sequence[RoundBytes]) -> list[tuple[str, RoundBytes]]:
    """Rounds of the same bytes as one, with a name such as "2-3"."""
    groups: list[list[RoundBytes]] = []
    for r in rounds:
        if groups and (groups[-1][0].down, groups[-1][0].up) == (r.down, r.up):
            groups[-1].append(r)
        else:
            groups.append([r])
    return [("-".join(dict.fromkeys((str(g[0].round + 1), str(g[-1].round + 1)))), g[0]) for g in groups]
