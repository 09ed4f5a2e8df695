"""A site's end of hidden sums: what it has trained as a vector of whole numbers, and its answers to the questions of a protocol.

Its state is saved before an answer goes out. What it has agreed to is its own: the run, the threshold, how its values are made
whole numbers. The layout of the vector is the coordinator's. It is bound into the name of the sum, so that clients who were told
of different layouts are in none together: nobody can be led to put its numbers where the others have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.communication.strict import Refused, plain
from weft.engines import sum_bills
from weft.federation.exchange import Limits
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.one_mean import changed
from weft.federation.sum_code import SumCode
from weft.federation.sum_layout import SumLayout
from weft.federation.summed_clients import alike, noise
from weft.privacy.hiding import Privacy
from weft.privacy.sums import packets
from weft.privacy.sums.packets import Kind
from weft.privacy.sums.protocol import protocol_of
from weft.storage import files
from weft.tensors.forms import Value

WIDTH = 4
"""Bytes of an integer of a vector, as it is kept."""


class SiteSums:
    """Of one site and stage.

    Args:
        me: id of the client. folder: of its memory. label: names the run and its stage.
    """

    def __init__(self, method: Method, privacy: Privacy, me: str, folder: Path, label: str, limits: Limits):
        self.method, self.privacy, self.me, self.label, self.limits = method, privacy, me, label, limits
        self.protocol = protocol_of(privacy)
        self.layout: SumLayout | None = None
        self.state = folder / "sum.bin"

    def agreed(self, layout: Mapping[str, Any]) -> str:
        """Take the layout of the next turn, an empty one where nothing is sent; returns what tells it from others.

        Raises:
            Refused: it is none, or too large.
        """
        self.layout = None
        if not layout:
            return ""
        self.layout = SumLayout.read(layout)
        size = self.protocol.width * self._code().length
        if size > self.limits.max_bytes:
            raise Refused(f"The sum has {size:,} bytes, more than the {self.limits.max_bytes:,} that a message may have.")
        return self.layout.digest

    def vector(self, update: Update, round: int, held: Mapping[str, Value]) -> bytes:
        """What the client adds to the sum of a round, not yet hidden.

        Args:
            held: what the update began from.

        Raises:
            Refused: the layout has no place for the update.
        """
        if self.layout is None:
            raise Refused("The coordinator tells nothing of the sum that the update goes into.")
        change = changed(update.tensors, held, self.protocol.name)
        encoded = self._code().encoded(change, update.weight, noise(self.privacy, round, self.me))
        return packets.packed(encoded, WIDTH)

    def answer(self, kind: Kind, question: bytes, round: int, vector: bytes, digest: str) -> bytes:
        """To a question of the sum of a round.

        Args:
            vector: of :meth:`vector`. digest: what :meth:`agreed` gave before that turn.

        Raises:
            Refused: the question is none that may be answered.
        """
        numbers = packets.unpacked(vector, WIDTH)
        terms = sum_bills.terms_of(self.protocol, self.label, round, digest, len(numbers))
        client = self.protocol.client_from(files.read(self.state)) if self.state.exists() else None
        if kind == self.protocol.kinds[0] and (client is None or not client.has_told(question)):
            if client is not None and client.terms.round >= round and client.over:
                raise Refused(f"Round {plain(round)} is over: this client takes part in no other sum of it.")
            client = self.protocol.client(terms, self.me, question, client)
        if client is None or client.terms != terms:
            raise Refused("The question is of another sum than the one that this client has begun.")
        said = client.answer(question, numbers)
        files.write(self.state, client.saved())
        return said

    def _code(self) -> SumCode:
        assert self.layout is not None
        return SumCode(self.privacy, self.layout, alike(self.method, self.privacy))
