"""Whole tiny federations in memory: ``federation(FedIT(rank=2), pack=3).run()``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.data.periods import apart
from weft.data.rows import BOTH
from weft.data.several import facts as tasks_of
from weft.engines.cohort import cohort
from weft.engines.engine import Engine
from weft.engines.noise_budget import Spending
from weft.engines.scoring import Scoring
from weft.engines.setup import Settings, Setup
from weft.engines.stepwise import simulated
from weft.federation import common_facts
from weft.federation.arrivals import Arrivals
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange
from weft.federation.message import beside
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.rounds import adapted, begin, enter
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.privacy.hiding import Privacy
from weft.storage.notes import Notes
from weft.storage.store import ClientStore, Spool
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import CLASSES, GENERATION, LANGUAGE, MASKED, NEXT_ITEM, PREFERENCE, QUESTIONS, SEVERAL, TOKENS, make
from weft.testing.data import SIZES, TAGS, for_server, names_of_several, states
from weft.testing.models import PAIRED, at_home, backbone, items, names, root, task_of

NOTHING = Privacy()


@dataclass
class Federation:
    """A run in memory. ``run()`` plays its rounds; ``global_logits()`` predicts with the server's model."""

    method: Method
    bench: Bench
    server: ServerState
    clients: list[ClientState]
    simulation: Engine
    rounds: int

    def run(self, rounds: int | None = None) -> Federation:
        for t in range(self.rounds if rounds is None else rounds):
            if self.simulation.round(t) is None:
                break
        return self

    def pack(self, clients: Sequence[int] | None = None, t: int = 0) -> Pack:
        """A pack of these clients (all, if None), of one backbone, as they enter round t, past the wire.

        They remember what is stored of them, unless they hold something already.
        """
        server = self.server
        server.round = replace(self.method.plan(server, t) or Round(t), period=server.period_at(t))
        server.introduce(self.clients)
        chosen = self.clients if clients is None else [self.clients[i] for i in clients]
        server.cohort = [c.info(self.method.info.asks) for c in chosen]
        turns = []
        for c in chosen:
            if not c.kept and not c.memo:
                self.simulation.setup.store.load(c)
            info = c.info(self.method.info.asks)
            message = self.method.send(server, info)
            adaptation = adapted(self.method, self.bench, info)
            free = beside(adaptation, self.bench.of(c).backbone, message.tensors)
            facts = message.facts | server.round.extra
            turns.append(Turn(c, adaptation, server.held_by(info, adaptation, message), facts, free))
        return enter(self.method, self.bench.of(chosen[0]), turns, server.round, server.start)

    def cohort(self) -> list[ClientState]:
        """Who takes part in the server's round."""
        share, last = self.simulation.setup.settings.participation, self.simulation.last_cohort
        return cohort(self.server.seed, self.server.round, self.clients, share, last)

    def global_logits(self, index: np.ndarray | None = None, view: str = "global", dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, C] on rows of the table (all, if None)."""
        index = np.arange(len(self.bench.table)) if index is None else index
        return self.server.pack().predict(lambda p, b: self.method.forward(p, b, view), [index], dtype=dtype)[0]

    def personal_logits(
        self, view: str, rows: Mapping[str, np.ndarray] | None = None, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """Client -> [n, C] of its own model on rows of the table (the first client's test rows for everybody, if None)."""
        rows = {c.id: self.clients[0].data.test for c in self.clients} if rows is None else rows
        owner, chosen = {c.id: self.server for c in self.clients}, [c for c in self.clients if c.id in rows]
        found: dict[str, Tensor] = {}
        for part, pack in Scoring(self.simulation.setup, self.simulation.turns.capacity.k).models(owner, chosen):
            own = [rows[c.id] for c in part]
            logits = pack.predict(lambda p, b: self.method.forward(p, b, view), own, dtype=dtype)
            found |= {c.id: z for c, z in zip(part, logits, strict=True)}
        return dict(sorted(found.items()))


def federation(
    method: Method,
    model: Backbone | str | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    classes: int = 3,
    rounds: int = 2,
    seed: int = 0,
    precision: str = "float64",
    facts: Sequence[Mapping[str, Any]] | None = None,
    prefix: bool = False,
    codec_name: str = "identity",
    download_codec: str = "identity",
    start: dict[str, Tensor] | None = None,
    where: Path | None = None,
    others: Sequence[Backbone] = (),
    task: str = "auto",
    spaces: bool = False,
    decoding: Decoding | None = None,
    public: int = 0,
    periods: int = 1,
    known: bool = False,
    privacy: Privacy = NOTHING,
    **settings: Any,
) -> Federation:
    """A whole tiny federation in memory: ``federation(FedIT(rank=2), pack=3).run()``.

    Args:
        model: a type of ``SHAPES`` or a backbone; None = one that has what the method needs. facts: one mapping per client.
        others: more backbones, which clients get by turns.
        prefix: with the frozen-prefix cache.
        task: ``tokens``, if words are tagged; ``several``, of two tasks; ``generation`` and ``masked``, of prompts and answers;
            ``preference``, with two.
        spaces: see :func:`weft.testing.data.tagged`. decoding: of ``generation``; None = the usual.
        public: rows of the same kind that the server has.
        periods: in which rows arrive, by their classes. known: rows are told apart among those of their own period.
        privacy: what rows and clients are hidden by.
        where: folder of the client store (a new temporary one). settings: of :class:`weft.engines.setup.Settings`.
    """
    if task == "auto" and (not isinstance(model, Backbone) or task_of(method) in LANGUAGE):
        task = task_of(method)
    model = model or at_home(method, task)
    labels = (
        names_of_several(classes)
        if task == SEVERAL
        else TAGS
        if task == TOKENS
        else ("answer",)
        if task in LANGUAGE
        else names(classes)
    )
    stored = None if task not in LANGUAGE else "mlm" if task == MASKED else "pair" if model in PAIRED else "lm"
    read_as = GENERATION if task in (GENERATION, PREFERENCE) else TOKENS if task == SEVERAL else task
    of = (
        backbone(model, classes=len(labels), precision=precision, task=read_as, checkpoint=stored)
        if isinstance(model, str)
        else model
    )
    if of.reads == "items":
        task, labels = NEXT_ITEM, items(classes)
    all_rows, clients, tests = states(sizes, classes, facts, seed, of.reads, task, spaces)
    if all_rows.tasks is not None:
        for client in clients:
            client.facts |= {"tasks": tasks_of(all_rows.tasks, client.data.train, (client.data.val, client.data.test))}
    if decoding is None and task == GENERATION and of.reads == BOTH:  # rows are long: room for more depends on who shares a pass
        decoding = Decoding(new_tokens=8)
    writing: dict[str, Any] = {} if decoding is None else {"decoding": decoding}
    if of.reads == BOTH and task not in LANGUAGE:
        task = QUESTIONS
    predicts = make(labels, task if task in (TOKENS, NEXT_ITEM, QUESTIONS, SEVERAL, *LANGUAGE) else CLASSES, **writing)
    of_row = all_rows.labels % periods
    if known:
        all_rows = apart(all_rows, of_row, {}, "classes", classes)
    # of a prompt that is too long its picture is cut off with the question
    longest = 64 if task in LANGUAGE and of.reads == BOTH else 32
    benches = [
        Bench(b, predicts, tabulate(b, all_rows, longest), seed, PrefixCache(b) if prefix else None, privacy=privacy)
        for b in (of, *others)
    ]
    if periods > 1:
        arrivals = Arrivals(of_row, periods)
        benches = [replace(bench, arrivals=arrivals) for bench in benches]
    made = replace(benches[0], others={b.backbone.name: b for b in benches[1:]})
    for i, client in enumerate(clients):
        client.model = ["", *made.others][i % len(benches)]
    where = where or Path(tempfile.mkdtemp(dir=root()))
    rows = for_server(public, classes, seed, of.reads, task, spaces)
    extra = Bench(of, predicts, tabulate(of, rows, longest), seed) if public else None
    common_facts.settle(clients)
    people = [c.info(method.info.asks) for c in clients]
    server = begin(method, made, people, rounds, start, notes=Notes(where / "notes"), public=extra, periods=periods)
    method.start(server)
    setup = Setup(
        method,
        made,
        [(server, clients)],
        Settings(rounds=rounds, **settings),
        Exchange(method, codec(codec_name), Ledger(), downlink=codec(download_codec)),
        ClientStore(where / "clients"),
        Spool(where / "spool"),
        tests,
        spending=None if privacy.central is None else Spending(where / "privacy.json", privacy),
        sums=where / "sum.bin",
    )
    return Federation(method, made, server, clients, Engine(setup, simulated(setup)), rounds)
