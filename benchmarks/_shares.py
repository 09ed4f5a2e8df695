"""A simulation whose clients train on equal shares of a table, for the benchmarks that time its rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import Table
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.engines.engine import Engine, Turns
from weft.engines.here import Here
from weft.engines.setup import Settings, Setup, Tests
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.exchange import Exchange
from weft.federation.method import Method
from weft.federation.rounds import begin
from weft.storage.store import ClientStore, Spool
from weft.tasks.classification import Classification

NONE = np.zeros(0, np.int64)


def name(client: int) -> str:
    return f"c{client:03d}"


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
    each = len(table) // clients
    people = [ClientState(name(i), each, data=Splits(np.arange(i * each, (i + 1) * each), NONE, NONE)) for i in range(clients)]
    bench = Bench(backbone, Classification(classes), table, 0, PrefixCache(backbone) if cached else None)
    server = begin(method, bench, [c.info(()) for c in people], rounds)
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
