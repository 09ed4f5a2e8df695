"""A round's updates, from bytes to the new state: which are valid, which are too large, and what the method makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from weft.communication.strict import Refused, is_number
from weft.communication.wire import Apart
from weft.engines.setup import Job, Setup
from weft.federation.diagnostics import Diagnostics
from weft.federation.hidden_clients import HiddenClients
from weft.federation.hidden_rows import MEMO
from weft.federation.message import Update
from weft.federation.rounds import close_round
from weft.federation.server import ServerState
from weft.federation.summed_clients import Sum, SummedClients
from weft.federation.usual import Usual, moved
from weft.tensors.forms import Value

UNTOLD = "It does not tell what it has cost its client."


class Intake:
    """Reads the spool of a round.

    Attributes:
        counted: clients whose updates counted in the last round. diagnostics: its aggregation error, drift and effective rank, as
            far as there are any.
        usual: how large updates are; None = nobody asks. hidden: what may be told of a round whose clients are hidden.
    """

    def __init__(self, setup: Setup, usual: Usual | None):
        self.setup, self.usual = setup, usual
        self.counted: list[str] = []
        self.diagnostics: dict[str, float] = {}
        self.hidden: dict[str, Any] = {}

    def close(self, jobs: list[Job], fresh: bool = False, found: Sum | None = None) -> tuple[dict[str, Any], dict[str, str]]:
        """Aggregate at every server.

        Args:
            fresh: a pass with noise of its own begins, where there are such.
            found: the sum of the round's updates, where sites have told nothing else; None = they are in the spool.

        Returns:
            what robust rules did, and why updates were refused, by client.
        """
        refused: dict[str, str] = {}
        remarks: dict[str, Any] = {}
        self.counted, self.diagnostics, self.hidden = [], {}, {}
        privacy = self.setup.bench.privacy
        for server, _ in self.setup.federations:
            mine = {j.client.id: j for j in jobs if j.server is server}
            norms, limit = self._norms(mine, server.round.kind)
            updates = self.updates(mine, refused, norms, limit)
            if privacy.summed is not None:
                updates = self._summed(server, updates, {c: j.held for c, j in mine.items()}, found)
            elif privacy.central is not None:
                hidden = HiddenClients(self.setup.method, server, privacy, fresh)
                updates, self.hidden = hidden.passing(updates, {c: j.held for c, j in mine.items()}), hidden.remarks
            measured = Diagnostics(self.setup.method, server, mine) if self.setup.settings.diagnostics and not privacy else None
            remarks |= close_round(self.setup.method, server, updates if measured is None else measured.passing(updates))
            if "skipped" in remarks:
                self.setup.observer.say(f"round {server.round.index + 1}: {remarks['skipped']}.")
                continue
            if measured is not None:
                self.diagnostics = measured.values()
            if self.usual is not None:
                self.usual.accepted(server.round.kind, [norms[c] for c in self.counted if c in norms])
        self.setup.spool.clear()
        return remarks, refused

    def _summed(
        self, server: ServerState, updates: Iterator[Update], held: Mapping[str, Mapping[str, Value]], found: Sum | None
    ) -> Iterator[Update]:
        """Updates that are all made of the mean of a sum; none where there is no sum.

        Args:
            found: None = updates are here, and are added up.
        """
        hidden = SummedClients(self.setup.method, server, self.setup.bench.privacy)
        try:
            found = hidden.added(updates, held) if found is None else found
            passing = hidden.passing(found)
        except Refused as e:
            self.counted = []
            self.setup.observer.say(f"round {server.round.index + 1} counts for nothing: {e}")
            return iter(())
        self.counted = list(found.clients)
        return passing

    def updates(
        self, jobs: Mapping[str, Job], refused: dict[str, str], norms: Mapping[str, float], limit: float | None
    ) -> Iterator[Update]:
        """The round's valid updates in client order; a bad one is refused, noted, and the round goes on without it.

        Args:
            norms: how far each leads. limit: how far it may; None = as far as it likes.
        """
        say = self.setup.observer.say
        for client in sorted(jobs):
            try:
                update = self._read(jobs[client])
                if limit is not None and norms.get(client, 0.0) > limit:
                    raise Refused(
                        f"It leads {norms[client]:.3g} away, and {limit:.3g} is the most that this federation's updates so far "
                        "allow (max_factor)."
                    )
            except Refused as e:
                refused[client] = str(e)
                say(f"update of {client} refused: {e}")
                if isinstance(e, Apart):
                    self.setup.exchange.begin_anew(jobs[client].server, client)
                continue
            if update is None:
                continue
            if self.setup.bench.privacy.tells and not heard(jobs[client].server, client, update.facts.pop(MEMO, None)):
                refused[client] = UNTOLD
                say(f"update of {client} refused: {refused[client]}")
                continue
            if update.weight > 0:
                self.counted.append(client)
                self.setup.exchange.count(jobs[client].server, jobs[client], update)
                if self.setup.keeper is not None:
                    self.setup.keeper.put(jobs[client].kept(update))
                yield update
            else:  # those who train have rows; a rule that divides by the weights could divide by nothing
                say(f"update of {client} counts no examples, and is left out.")

    def _norms(self, jobs: Mapping[str, Job], kind: str) -> tuple[dict[str, float], float | None]:
        """How far each update leads, and how far it may; both empty where nobody asks. One update is in memory at a time."""
        norms: dict[str, float] = {}
        if self.usual is None:
            return norms, None
        for client, job in jobs.items():
            with suppress(Refused):
                update = self._read(job)
                if update is not None and update.weight > 0:
                    norms[client] = moved(update.tensors, job.held)
        return norms, self.usual.limit(kind, norms.values())

    def _read(self, job: Job) -> Update | None:
        """
        Raises:
            Refused: what was sent is none that this round can use.
        """
        data = self.setup.spool.get(job.client.id)
        if data is None:
            return None
        update = self.setup.exchange.read_update(job.server, job, data, job.round)
        update.late = job.late
        return update


def heard(server: ServerState, client: str, said: object) -> bool:
    """Take note of what a client says its turns have cost; False if it is nothing of that kind."""
    if not isinstance(said, dict) or said.keys() - {"epsilon", "next"}:
        return False
    if not all(is_number(value, int, float) and value >= 0 for value in said.values()):
        return False
    server.hiding[told_by(client)] = said
    return True


def told_by(client: str) -> str:
    """Under which name a server has what a client says that its turns have cost."""
    return f"told/{client}"
