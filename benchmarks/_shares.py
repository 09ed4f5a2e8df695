"""A simulation whose clients train on equal shares of a table, for the benchmarks that time its rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _rounds import NONE, states
from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import Table
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.engines.engine import Engine, Turns
from weft.engines.here import Here
from weft.engines.setup import Settings, Setup, Tests
from weft.federation.bench import Bench
from weft.federation.exchange import Exchange
from weft.federation.method import Method
from weft.federation.rounds import begin
from weft.storage.store import ClientStore, Spool
from weft.tasks.classification import Classification


@contextmanager
def simulation(
    method: Method,
    backbone: Backbone,
    table: Table,
    classes: tuple[str, ...],
    clients: int,
    rounds: int,
    cached: bool,
    turns: Callable[[Setup], Turns] = Here,
) -> Iterator[Engine]:
    """A simulation before its first round; nothing will be evaluated.

    Args:
        table: rows, the first share the first client's. cached: with the prefix cache. turns: who trains.
    """
    people = states(clients, len(table) // clients)
    bench = Bench(backbone, Classification(classes), table, 0, PrefixCache(backbone) if cached else None)
    server = begin(method, bench, [c.info(()) for c in people], rounds)
    method.start(server)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        setup = Setup(
            method,
            bench,
            [(server, people)],
            Settings(rounds=rounds),
            Exchange(method, codec("identity"), Ledger()),
            ClientStore(where / "clients"),
            Spool(where / "spool"),
            Tests(NONE, NONE),
        )
        yield Engine(setup, turns(setup))
