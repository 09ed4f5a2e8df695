"""Federations in which each client is a stranger: it gets bytes, keeps its own copy of what it read, and gives bytes.

Written a second time, beside :mod:`weft.engines.site`, from what the contract says of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.communication.codecs import codec
from weft.communication.frame import Expected, Header, Received
from weft.communication.wire import decode, encode
from weft.engines.cohort import drops_out
from weft.federation.exchange import download_shapes
from weft.federation.layout import named
from weft.federation.memory import NONE
from weft.federation.message import APPENDED, beside
from weft.federation.round import Round
from weft.federation.rounds import adapted, enter
from weft.federation.scope import Scope, matches
from weft.federation.turn import Turn
from weft.tensors.forms import Value
from weft.tensors.lowrank import LowRank
from weft.testing.federation import Federation


class Stranger:
    """One client with nothing but the experiment's description, its rows, and a copy of what it has received."""

    def __init__(self, run: Federation, position: int):
        self.client = run.clients[position]
        self.method, self.bench, self.start = run.method, run.bench.of(self.client), run.server.start
        self.said: dict[str, Any] = {}
        self._begin()

    def heed(self, said: Mapping[str, Any]) -> None:
        """Facts that the server has renewed; whoever is of another size then gets everything anew."""
        if said != self.said:
            self.said = dict(said)
            self.client.renew(said)
            self._begin()

    def _begin(self) -> None:
        self.info = self.client.info(self.method.info.asks)
        self.adaptation = adapted(self.method, self.bench, self.info)
        self.copy: dict[str, Value] = {}
        for name, init, scope in named(self.adaptation, self.bench.backbone):
            if Scope.DOWN in scope:
                if init.kind == "lowrank":
                    self.copy[name] = LowRank.zeros(*init.shape, dtype=self.bench.dtype)
                else:
                    self.copy[name] = self.bench.begin(init, name, self.start)

    def take(self, data: bytes, round: Round) -> Received:
        """Read a download, and keep its values."""
        shapes = download_shapes(self.adaptation, self.bench) | dict(self.method.downloads(self.bench, self.info))
        expected = Expected(
            method=self.method.info.slug,
            round=round.index,
            kind=round.kind,
            direction="down",
            tensors=shapes,
            facts=frozenset(self.method.info.tells) | frozenset(round.extra),
            max_weight=1e9,
            masked=frozenset(n for n in shapes if matches(n, self.method.in_part)),
        )
        received = decode(data, expected)
        self.beside = beside(self.adaptation, self.bench.backbone, received.tensors)
        for name, value in received.tensors.items():
            if name in self.beside:
                continue
            if name.endswith(APPENDED):
                plain = name.removesuffix(APPENDED)
                old = self.copy[plain]
                assert isinstance(old, LowRank)
                assert isinstance(value, LowRank)
                self.copy[plain] = LowRank.cat([old, value])
            else:
                self.copy[name] = value
        return received

    def turn(self, data: bytes, round: Round, counted: int) -> bytes | None:
        """Read a download, train, and answer."""
        received = self.take(data, round)
        pack = enter(
            self.method,
            self.bench,
            [Turn(self.client, self.adaptation, self.copy, received.facts, self.beside, counted)],
            round,
            self.start,
        )
        updates = list(self.method.train(pack))
        pack.write_back()
        if not updates:
            return None
        header = Header(self.method.info.slug, round.index, round.kind, "up", self.client.id, updates[0].weight)
        return encode(header, updates[0].tensors, updates[0].facts, codec("identity"), reference=self.copy).data


def by_messages(run: Federation) -> None:
    """All rounds of a run, each client by itself; cohorts as the simulation draws them."""
    server = run.server
    sites = {c.id: Stranger(run, i) for i, c in enumerate(run.clients)}
    for t in range(run.rounds):
        plan = run.method.plan(server, t)
        if plan is None:
            return
        plan = server.round = replace(plan, period=server.period_at(t))
        server.introduce(run.clients)
        for client_id, site in sites.items():
            site.heed(server.said.get(client_id, {}))
        cohort = run.cohort()
        server.cohort = [sites[c.id].info for c in cohort]
        run.simulation.last_cohort = [c.id for c in cohort]
        replies: dict[str, bytes] = {}
        for client in cohort:
            message = run.method.send(server, sites[client.id].info)
            header = Header(run.method.info.slug, t, plan.kind, "down", client.id)
            data = encode(header, message.tensors, message.facts | plan.extra, codec("identity")).data
            server.receipt(message, sites[client.id].info)
            if drops_out(server.seed, client.id, t, run.simulation.setup.settings.dropout):
                sites[client.id].take(data, plan)
                continue
            reply = sites[client.id].turn(data, plan, server.counted.get(client.id, NONE))
            if reply is not None:
                replies[client.id] = reply
        server.clock += 1
        updates = [
            run.simulation.setup.exchange.read_update(server, Turn(sites[c].client, sites[c].adaptation, sites[c].copy), data)
            for c, data in sorted(replies.items())
        ]
        run.method.aggregate(server, updates)
        server.counted |= dict.fromkeys(replies, t)
    for site in sites.values():
        run.simulation.setup.store.save(site.client)
