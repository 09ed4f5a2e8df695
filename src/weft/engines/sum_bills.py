"""What a sum that hides its updates costs on the wire: bills of its messages, those that a simulation leaves out too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.communication.ledger import Phase
from weft.engines.setup import Job, Setup
from weft.federation.server import ServerState
from weft.federation.sum_layout import SumLayout
from weft.federation.summed_clients import SummedClients
from weft.privacy.sums.packets import Kind
from weft.privacy.sums.protocol import SumProtocol, protocol_of
from weft.privacy.sums.sum_terms import SumTerms

LABEL = f"{'0' * 32}/rounds"
"""As long as that of a run over sites."""


def terms_of(protocol: SumProtocol, label: str, round: int, layout: str, length: int) -> SumTerms:
    """Of one round's sum: who has been told of another layout has agreed to another sum.

    Args:
        label: names the run. layout: its digest. length: integers of a vector.
    """
    return protocol.terms(f"{label}:{layout}", round, length)


def payload(protocol: SumProtocol, kind: Kind, up: bool, body: int, layout: SumLayout) -> Mapping[str, int]:
    """Bytes of a message by part: a hidden vector is that of tensors, and the rest the protocol's."""
    if kind != protocol.vector or not up:
        return {protocol.name: body}
    values = {part: protocol.width * n for part, n in layout.parts.items()}
    return values | {protocol.name: body - sum(values.values())}


def add(setup: Setup, jobs: Sequence[Job], phase: Phase) -> None:
    """Bill the sum over those whose updates are in the spool."""
    for server, _ in setup.federations:
        ids = tuple(sorted(j.client.id for j in jobs if j.server is server and setup.spool.holds(j.client.id)))
        if ids:
            _add(setup, server, ids, phase)


def _add(setup: Setup, server: ServerState, ids: tuple[str, ...], phase: Phase) -> None:
    protocol = protocol_of(setup.bench.privacy)
    code = SummedClients(setup.method, server, setup.bench.privacy).code
    terms = terms_of(protocol, LABEL, server.round.index, code.layout.digest, code.length)
    for client in ids:
        for (kind, direction), (body, size) in protocol.sizes(terms, ids, client).items():
            parts = payload(protocol, kind, direction == "up", body, code.layout)
            setup.exchange.ledger.add(server.round.index, phase, direction, client, parts, size)
