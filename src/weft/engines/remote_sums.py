"""The coordinator's end of hidden sums between sites: the questions of a protocol to those who have trained, and one sum.

The state of the sum lies in a file from before a question goes out to after its answers have come, so that a coordinator that is
killed asks the same question again, and sites give the same answers: nobody is ever in two sums of one round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.communication import Direction
from weft.communication.envelope import unwrap
from weft.communication.ledger import Phase
from weft.communication.strict import Refused
from weft.engines import sum_bills
from weft.engines.question import Question
from weft.engines.setup import Job, Setup
from weft.federation.memory import NONE
from weft.federation.server import ServerState
from weft.federation.summed_clients import Sum, SummedClients
from weft.privacy.sums.packets import Kind, Packet
from weft.privacy.sums.protocol import ServerEnd, protocol_of
from weft.privacy.sums.sum_terms import SumTerms
from weft.storage import files

if TYPE_CHECKING:
    from weft.engines.remote import Transport


class RemoteSums:
    """Sums of one stage, a round after the other.

    Args:
        transport: gives who carries the questions.
    """

    def __init__(self, setup: Setup, transport: Callable[[], Transport]):
        assert setup.sums is not None
        self.setup, self.transport, self.path = setup, transport, setup.sums
        self.protocol = protocol_of(setup.bench.privacy)

    def layout(self, server: ServerState) -> Mapping[str, Any]:
        """What sites are told of a round's vectors before they train."""
        return self._round(server).code.layout.written()

    def over(self, jobs: Sequence[Job], ready: Sequence[Job], phase: Phase) -> Sum:
        """The sum over as many of those who are ready as come through all questions; of nobody, if those are too few.

        Args:
            jobs: of the round.
        """
        if not ready:
            return Sum(np.zeros(0, np.uint32), ())
        server = ready[0].server
        of, t = self._round(server), server.round.index
        label = self.transport().label
        terms = sum_bills.terms_of(self.protocol, label, t, of.code.layout.digest, of.code.length)
        state = self._begun(terms, [j.client.id for j in jobs], [j.client.id for j in ready])
        try:
            while (kind := state.kind) is not None:
                self._ask(state, kind, server, of, phase)
                for client, why in state.close().items():
                    self.setup.observer.say(f"{client} is left out of the sum of round {t + 1}: {why}.")
                if kind == self.protocol.vector:
                    of.check(state.summed)
                files.write(self.path, state.saved())
            return Sum(state.total(), state.summed)
        except Refused as e:
            self.setup.observer.say(f"round {t + 1} counts for nothing: {e}")
            return Sum(np.zeros(0, np.uint32), ())

    def _round(self, server: ServerState) -> SummedClients:
        return SummedClients(self.setup.method, server, self.setup.bench.privacy)

    def _begun(self, terms: SumTerms, cohort: Sequence[str], ready: Sequence[str]) -> ServerEnd:
        """A sum that was under way when the coordinator stopped, or a new one."""
        with suppress(Refused):  # a torn one is of no use, and sites take care of themselves
            if self.path.exists():
                state = self.protocol.server.loaded(files.read(self.path))
                if state.terms == terms and set(state.asked) <= set(cohort):
                    return state
        state = self.protocol.server.begun(terms, ready)
        files.write(self.path, state.saved())
        return state

    def _ask(self, state: ServerEnd, kind: Kind, server: ServerState, of: SummedClients, phase: Phase) -> None:
        """One question to all who have not answered it, and their answers; whoever has none is left out."""
        asked = {client: state.question(client) for client in state.waiting}
        for client, packet in asked.items():
            self._bill(server, phase, kind, client, packet, "down", of)
        said = self.transport().ask(
            {c: Question(kind, server.round, packet, 0, 0, NONE, {}).encode() for c, packet in asked.items()}
        )
        for client in asked:
            raw = said.get(client)
            if raw is None:
                self.setup.observer.say(
                    f"{client} did not answer in round {server.round.index + 1}, whose sum goes on without it."
                )
                continue
            try:
                _, packet = unwrap(raw)
                state.receive(client, packet)
                self._bill(server, phase, kind, client, packet, "up", of)
            except Refused as e:
                self.setup.observer.say(f"answer of {client} refused: {e}")
        files.write(self.path, state.saved())

    def _bill(
        self, server: ServerState, phase: Phase, kind: Kind, client: str, packet: bytes, direction: Direction, of: SummedClients
    ) -> None:
        body = len(Packet.read(packet).body)
        parts = sum_bills.payload(self.protocol, kind, direction == "up", body, of.code.layout)
        self.setup.exchange.ledger.add(server.round.index, phase, direction, client, parts, len(packet))
