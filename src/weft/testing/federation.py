"""Whole tiny federations in memory: ``federation(FedIT(rank=2), pack=3).run()``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.backbones.tables import tabulate
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.engines.simulation import Settings, Simulation
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange
from weft.federation.message import Value
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.server import Round, ServerState
from weft.federation.store import ClientStore, Spool
from weft.tasks.classification import Classification
from weft.testing.data import SIZES, states
from weft.testing.models import backbone, home, names, root


@dataclass
class Federation:
    """A run in memory. ``run()`` plays its rounds; ``global_logits()`` predicts with the server's model."""

    method: Method
    bench: Bench
    server: ServerState
    clients: list[ClientState]
    simulation: Simulation
    rounds: int

    def run(self, rounds: int | None = None) -> Federation:
        for t in range(self.rounds if rounds is None else rounds):
            if self.simulation.round(t) is None:
                break
        return self

    def pack(self, clients: Sequence[int] | None = None, t: int = 0) -> Pack:
        """A pack of these clients (all, if None), of one backbone, as they enter round t, past the wire."""
        server = self.server
        server.round = self.method.plan(server, t) or Round(t)
        chosen = self.clients if clients is None else [self.clients[i] for i in clients]
        server.cohort = [c.info(self.method.info.asks) for c in chosen]
        adaptations = []
        held: list[Mapping[str, Value]] = []
        facts: list[Mapping[str, Any]] = []
        for c in chosen:
            info = c.info(self.method.info.asks)
            message = self.method.send(server, info)
            adaptations.append(self.method.adapt(self.bench.of(info).backbone, self.bench.task, info))
            held.append(server.held_by(info, message))
            facts.append(dict(message.facts))
        return Pack(self.bench.of(chosen[0]), chosen, adaptations, held, facts, server.round, server.start)

    def global_logits(self, index: np.ndarray | None = None) -> Tensor:
        """[n, C] on rows of the table (all, if None)."""
        index = np.arange(len(self.bench.table)) if index is None else index
        return self.server.bench().predict(lambda p, b: self.method.forward(p, b, "global"), [index])[0]

    def personal_logits(self, view: str, index: np.ndarray | None = None) -> dict[str, Tensor]:
        """Client -> [n, C] of its own model on rows of the table (the first client's test rows, if None)."""
        index = self.clients[0].data.test if index is None else index
        owner = {c.id: self.server for c in self.clients}
        return self.simulation._personal_logits(view, owner, self.clients, {c.id: index for c in self.clients})


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
    start: dict[str, Tensor] | None = None,
    where: Path | None = None,
    others: Sequence[Backbone] = (),
    **settings: Any,
) -> Federation:
    """A whole tiny federation in memory: ``federation(FedIT(rank=2), pack=3).run()``.

    Args:
        model: a type of ``SHAPES`` or a backbone; None = one that has what the method needs. facts: one mapping per client.
        others: more backbones, which clients get by turns.
        prefix: with the frozen-prefix cache.
        where: folder of the client store (a new temporary one). settings: of :class:`weft.engines.simulation.Settings`.
    """
    model = model or home(method)
    of = backbone(model, classes=classes, precision=precision) if isinstance(model, str) else model
    all_rows, clients, tests = states(sizes, classes, facts, seed, of.reads)
    benches = [
        Bench(b, Classification(names(classes)), tabulate(b, all_rows, 32), seed, PrefixCache(b) if prefix else None)
        for b in (of, *others)
    ]
    made = replace(benches[0], others={b.backbone.name: b for b in benches[1:]})
    for i, client in enumerate(clients):
        client.model = ["", *made.others][i % len(benches)]
    server = ServerState(method, made, [c.info(method.info.asks) for c in clients], rounds, start)
    method.start(server)
    where = where or Path(tempfile.mkdtemp(dir=root()))
    simulation = Simulation(
        method,
        made,
        [(server, clients)],
        Settings(rounds=rounds, **settings),
        Exchange(codec(codec_name), Ledger()),
        ClientStore(where / "clients"),
        Spool(where / "spool"),
        tests,
    )
    return Federation(method, made, server, clients, simulation, rounds)
