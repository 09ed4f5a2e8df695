"""What an engine is made of: a method, its federations, and where their messages, memory and updates lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weft.communication import Direction
from weft.devices import Clock
from weft.engines.noise_budget import Spending
from weft.engines.observer import Observer
from weft.federation.asynchrony import Late
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.common_facts import common, own
from weft.federation.exchange import Exchange
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.storage.store import ClientStore, Spool
from weft.storage.updates import KeptUpdate, UpdateKeeper


@dataclass(frozen=True)
class Settings:
    """How a federation is run, apart from the method.

    Attributes:
        rounds: planned.
        participation: fraction of clients in a sampled cohort.
        dropout: chance that a drawn client fails in the middle of its turn: it has downloaded, but nothing of its work is kept.
        pack: clients per pass, or ``auto``.
        debug: one by one, errors carry stage, client and batch.
        eval_clients: at most so many clients are scored with personal views each time (sampled); None = all.
        max_factor: how many times as large as usual an update may be; ``auto``: as the engine has it; ``off``: anything.
        diagnostics: aggregation error, drift and effective rank are recorded.
        flops: floating-point operations of turns are counted.
        by_class: clients that are elsewhere tell their right answers by class.
    """

    rounds: int = 6
    participation: float = 1.0
    dropout: float = 0.0
    pack: str | int = "auto"
    debug: bool = False
    eval_clients: int | None = None
    max_factor: float | str = "auto"
    by_class: bool = False
    diagnostics: bool = True
    flops: bool = False


@dataclass
class Tests:
    """Rows that scores are taken on, as positions in the token table; ``further`` are sets beside the global one, by name."""

    test: np.ndarray
    val: np.ndarray
    unseen: dict[str, np.ndarray] = field(default_factory=dict)
    further: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Setup:
    """One federation, or several beside each other.

    Attributes:
        federations: (server, its clients) pairs: one for a federation; one per client for the ``local`` baseline.
        store: of clients' memory.
        spool: of a round's updates.
        clock: of simulated devices; None = nobody keeps time. absent: clients that never take part.
        spending: of the server's noise; None = it adds none.
        keeper: of each update that counts, for audits; None = none is kept.
        sums: file of a sum under masks that is under way, where sites are asked for one.
    """

    method: Method
    bench: Bench
    federations: list[tuple[ServerState, list[ClientState]]]
    settings: Settings
    exchange: Exchange
    store: ClientStore
    spool: Spool
    tests: Tests
    observer: Observer = field(default_factory=Observer)
    clock: Clock | None = None
    spending: Spending | None = None
    absent: frozenset[str] = frozenset()
    keeper: UpdateKeeper | None = None
    sums: Path | None = None

    def info(self, client: ClientState) -> ClientInfo:
        """What the server is told of a client."""
        return client.info(self.method.info.asks)

    def register(self, info: ClientInfo) -> None:
        """A client tells the facts that the method asks for, once, and is told what all have for one; they cost bytes."""
        ways: tuple[tuple[Direction, dict[str, Any]], ...] = ("up", own(info.facts)), ("down", common(info.facts))
        for direction, facts in ways:
            if facts:
                size = len(json.dumps(facts, sort_keys=True))
                self.exchange.ledger.add(0, "setup", direction, info.id, {"facts": size}, size)


@dataclass
class Job(Turn):
    """One client's turn in one round, as the coordinator knows it.

    Attributes:
        server: which it belongs to.
        frame: what it received, as bytes.
        since, now: clock up to which it was up to date before, and is after.
        round: in which it was asked; None = the server's. late: what its change counts, where that is another.
    """

    server: ServerState = field(kw_only=True)
    frame: bytes = b""
    since: int = 0
    now: int = 0
    round: Round | None = None
    late: Late | None = None

    def kept(self, update: Update) -> KeptUpdate:
        """What an audit needs of the update of this turn."""
        now = self.server.round
        asked = now if self.round is None else self.round
        return KeptUpdate(
            round=now.index,
            asked=asked.index,
            kind=asked.kind,
            client=self.client.id,
            weight=update.weight,
            tensors=update.tensors,
            began={**self.held, **self.beside},
            facts=update.facts,
            told=dict(self.facts),
        )
