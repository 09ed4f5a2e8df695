"""Rounds without waiting: clients train from the model that they were sent, and the server updates it as their turns end.

A turn is played when it begins, from the model of that moment, since its time is known only then: operations are counted where
passes run, and bytes where messages are written. What comes of it (the update, what the client remembers, its bill) is put by
until the turn ends on the clock. A round is one update of the server.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.communication.ledger import Phase, Unbilled
from weft.devices import Spent, Timeline
from weft.engines.cargo import Cargo, Played
from weft.engines.cohort import drops_out, sample
from weft.engines.engine import Engine, Turns
from weft.engines.setup import Job, Setup
from weft.federation.asynchrony import Asynchrony
from weft.federation.client import ClientState
from weft.federation.rounds import adapted
from weft.federation.work import Work
from weft.tensors.keyed import numpy_generator


class Asynchronous(Engine):
    """Plays rounds of asynchronous aggregation, on the clock of simulated devices.

    Whoever comes at the same moment is taken in before anybody is sent out. A client that is drawn has no turn under way, no
    update in the buffer, and has not failed since the server's last update. So it counts at most once in each.

    Args:
        folder: for what is under way.
    """

    def __init__(self, setup: Setup, turns: Turns, asynchrony: Asynchrony, folder: Path):
        super().__init__(setup, turns)
        assert setup.clock is not None
        ((self.server, self.clients),) = setup.federations
        self.clock, self.asynchrony = setup.clock, asynchrony
        able = self._able(self.clients)
        share = setup.settings.participation
        self.wanted = asynchrony.taken(len(able), share)
        self.timeline = Timeline(asynchrony.at_work(len(able), share), self.clock.now)
        self.cargo = Cargo(folder)
        self.under_way: dict[str, Played] = {}

    def round(self, t: int, phase: Phase = "train") -> dict[str, Any] | None:
        """Until the server updates its model once; None when the method's plan has ended."""
        began = time.perf_counter()
        setup, server = self.setup, self.server
        plan = setup.method.plan(server, t)
        if plan is None:
            return None
        for client in self.clients:
            if setup.bench.arrivals is not None:
                setup.bench.arrivals.enter(client, server.period_at(t))
        server.introduce(self.clients)
        server.round = replace(plan, period=server.period_at(t))
        taken: list[Played] = []
        failed: dict[str, Spent] = {}
        draws = 0
        while len(taken) < self.wanted:
            while not self.timeline.landing and (drawn := self._draw(t, {p.flight.client for p in taken} | failed.keys(), draws)):
                draws += 1
                failed |= self._send_out(drawn, t, phase)
            flight = self.timeline.land()
            if flight is None:
                break  # everybody has failed
            taken.append(self.under_way.pop(flight.client))
        jobs = [self._landed(played, t, phase) for played in taken]
        server.cohort = [setup.info(job.client) for job in jobs]
        self.last_cohort = sorted([job.client.id for job in jobs] + list(failed))
        spent = {p.flight.client: p.spent for p in taken}
        began_at = {p.flight.client: p.flight.began for p in taken}
        tick = self.clock.reach(self.timeline.now, spent | failed, began_at, taken[-1].flight.client if taken else None)
        late = {p.flight.client: t - p.flight.version for p in sorted(taken, key=lambda p: p.flight.client)}
        losses = [p.loss for p in taken if p.loss is not None]
        work = [p.work for p in taken]
        return self._closed(t, jobs, sorted(failed), losses, work, tick, began, staleness=late)

    def _draw(self, t: int, out: set[str], draws: int) -> list[ClientState]:
        """Who begins now, where there is room.

        Args:
            out: who can't be drawn before the next update. draws: since the last one.
        """
        busy = self.timeline.under_way.keys() | out
        able = [c for c in self._able(self.clients) if c.id not in busy]
        key = (t, draws) if draws else (t,)  # the first is that of a synchronous round
        return sample(able, min(self.timeline.free, len(able)), numpy_generator(self.server.seed, "cohort", *key)) if able else []

    def _send_out(self, clients: list[ClientState], t: int, phase: Phase) -> dict[str, Spent]:
        """Turns that begin now; returns what those have spent that fail in the middle of theirs."""
        setup, ledger = self.setup, self.setup.exchange.ledger
        before = ledger.wires()
        every = [self._download(self.server, client, phase) for client in clients]
        down = {c.id: ledger.wires()[c.id][0] - before.get(c.id, (0, 0))[0] for c in clients}
        chance = setup.settings.dropout
        jobs = [job for job in every if not drops_out(self.server.seed, job.client.id, t, chance)]
        setup.exchange.ledger = unbilled = Unbilled()  # what is sent is billed when it comes
        try:
            played = self.turns.play(jobs, t, phase, lambda job: self._download(job.server, job.client, phase))
        finally:
            setup.exchange.ledger = ledger
        for job in jobs:
            client = job.client.id
            setup.store.hold(client)
            payload, wire = unbilled.bills.get(client, ({}, 0))
            work = (played.work or {}).get(client, Work())
            spent = Spent(work.flops, down[client], wire)
            digest = self.cargo.put(client, t, job.held, setup.spool.get(client))
            setup.spool.drop(client)
            flight = self.timeline.start(client, t, self.clock.seconds(client, spent))
            self.under_way[client] = Played(flight, spent, work, payload, wire, played.losses.get(client), digest)
        arrived = {job.client.id for job in jobs}
        return {c.id: Spent(0, down[c.id], 0, answered=False) for c in clients if c.id not in arrived}

    def _landed(self, played: Played, t: int, phase: Phase) -> Job:
        """The job of a turn that has ended, whose update is in the spool and billed to the round in which it came."""
        setup, flight = self.setup, played.flight
        client = next(c for c in self.clients if c.id == flight.client)
        held, update = self.cargo.get(played)
        setup.store.release(client.id)
        if update is not None:
            setup.exchange.ledger.add(t, phase, "up", client.id, played.payload, played.wire)
            setup.spool.put(client.id, update)
        return Job(
            client,
            adapted(setup.method, setup.bench, setup.info(client)),
            held,
            server=self.server,
            round=replace(self.server.round, index=flight.version),
            late=self.asynchrony.late(t - flight.version, held),
        )

    # what outlives the process ----------------------------------------------------------------------------------------

    def saved(self) -> list[dict[str, Any]]:
        self.cargo.settle()
        return [played.as_json() for _, played in sorted(self.under_way.items())]

    def restore(self, saved: list[dict[str, Any]]) -> None:
        flown = [Played.from_json(one) for one in saved]
        self.under_way = {p.flight.client: p for p in flown}
        self.timeline = Timeline(self.timeline.concurrency, self.clock.now, [p.flight for p in flown])
        self.sweep()

    def sweep(self) -> None:
        self.cargo.sweep(self.under_way.values())
