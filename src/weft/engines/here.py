"""Clients that train in this process, in packs on one shared backbone.

Clients hold nothing in memory between rounds but their row numbers: what they remember lies in a store.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from weft.communication.ledger import Phase
from weft.engines import packing
from weft.engines.engine import Played, Scores
from weft.engines.round_losses import Losses
from weft.engines.scoring import Scoring
from weft.engines.setup import Job, Setup
from weft.errors import UserError, WeftError
from weft.federation.hidden_turn import trained
from weft.federation.rounds import enter
from weft.federation.work import Work


class Here:
    """Turns in packs."""

    here = True
    admits = False
    factor: float | None = None

    def __init__(self, setup: Setup):
        self.setup = setup
        self.capacity = packing.capacity(setup)
        self.scoring = Scoring(setup, self.capacity.k)

    def arrive(self, t: int) -> None:
        """Everybody is here from the beginning."""

    def play(self, jobs: list[Job], t: int, phase: Phase, again: Callable[[Job], Job]) -> Played:
        by_id = {j.client.id: j for j in jobs}
        observer, k = self.setup.observer, self.capacity.k
        observer.begin("clients", len(jobs))
        losses, work = Losses(by_id, lambda: observer.advance("steps")), dict[str, Work]()
        for group in packing.group([j.client for j in jobs], k, self.setup.bench):
            members = [by_id[c.id] for c in group]
            try:
                work |= self._pack(members, losses, phase)
            except torch.OutOfMemoryError as e:
                raise packing.out_of_memory(self.capacity) from e
            except UserError:
                raise
            except Exception as e:
                if self.setup.settings.debug:
                    stage = f"training in round {t} ({members[0].server.round.kind})"
                    step = losses.steps(group[0].id)
                    raise WeftError(f"{stage}, client {group[0].id}, batch {step}: {type(e).__name__}: {e}") from e
                raise
            observer.advance("clients", len(group))
        observer.end("clients")
        return Played({} if self.setup.bench.privacy else losses.means(), work=work)

    def _pack(self, members: list[Job], losses: Losses, phase: Phase) -> dict[str, Work]:
        setup, server = self.setup, members[0].server
        for job in members:
            setup.store.load(job.client)
        pack = enter(setup.method, setup.bench.of(members[0].client), members, server.round, server.start, hides=True)
        pack.listener = losses
        if setup.settings.flops:
            pack.count_flops()
        by_id = {j.client.id: j for j in members}
        for update in trained(setup.method, pack):
            job = by_id[update.client.id]
            frame = setup.exchange.pack_update(job.server, update, job, phase)
            setup.spool.put(update.client.id, frame.data)
        pack.write_back()
        for job in members:
            setup.store.save(job.client)
        return pack.work

    def evaluate(self, t: int) -> Scores:
        return Scores(self.scoring.evaluate(t), samples=self.scoring.taken())
