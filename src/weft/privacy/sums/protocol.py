"""A protocol by which a server gets a sum of its clients' vectors: a few questions, each to all of them or to some."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np

from weft.communication import Direction
from weft.communication.strict import Refused
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import CKKS, SecAgg
from weft.privacy.sums import packets
from weft.privacy.sums.packets import NONCE, Kind, Packet
from weft.privacy.sums.sum_terms import SumTerms

Sizes = Mapping[tuple[Kind, Direction], tuple[int, int]]
"""By message of one client the bytes of its body, and all of its bytes."""

NAMELESS = "0" * 2 * NONCE
"""An attempt that nobody has begun."""


class ServerEnd(ABC):
    """One attempt at one sum. Save it after each answer that is received; what comes of a killed server goes on from there.

    Each question goes to all of :attr:`asked`. Answers are received in any order; :meth:`close` ends a question for those who
    have not answered. A client that fails once is out, and so is one whose answer is refused. After the last, :meth:`total`.

    Attributes:
        kinds: of the questions, in order.
        terms: of the sum. nonce: of the attempt. asked: whom the question in turn goes to, sorted.
        closed: who has answered each question that has ended, sorted.
    """

    kinds: ClassVar[tuple[Kind, ...]]

    def __init__(self, terms: SumTerms, clients: Iterable[str], nonce: str) -> None:
        self.terms, self.nonce = terms, nonce
        self.asked: tuple[str, ...] = tuple(sorted(set(clients)))
        self.closed: dict[Kind, tuple[str, ...]] = {}

    @classmethod
    def begun(cls, terms: SumTerms, clients: Iterable[str]) -> Self:
        """With a new name for the attempt, so that nothing of one that came to nothing is taken for its own."""
        return cls(terms, clients, os.urandom(NONCE).hex())

    @classmethod
    @abstractmethod
    def loaded(cls, data: bytes) -> Self:
        """Undo :meth:`saved`. Raises: Refused: the bytes are torn."""

    @property
    def kind(self) -> Kind | None:
        """Of the question in turn; None when all have ended."""
        return self.kinds[len(self.closed)] if len(self.closed) < len(self.kinds) else None

    @property
    @abstractmethod
    def waiting(self) -> tuple[str, ...]:
        """Who has not answered it."""

    @abstractmethod
    def question(self, client: str) -> bytes:
        """What ``client``, one of :attr:`asked`, is asked now: the same bytes each time."""

    @abstractmethod
    def receive(self, client: str, answer: bytes) -> None:
        """Take the answer of ``client``. One that comes again changes nothing.

        Raises:
            Refused: it is no answer to the question in turn, or another than the client has given before. Nothing of it is kept.
        """

    @abstractmethod
    def close(self) -> Mapping[str, str]:
        """End the question in turn, and leave out who has not answered it.

        Returns:
            who has answered and is left out all the same, and why, as a clause.

        Raises:
            Refused: those who are left are too few for a sum. The attempt is over; another may begin.
        """

    @property
    @abstractmethod
    def summed(self) -> tuple[str, ...]:
        """Whose vectors are in the sum, sorted, once they have come."""

    @abstractmethod
    def total(self) -> np.ndarray:
        """uint32 [length]: the sum of the vectors of :attr:`summed`, modulo 2^(8·width).

        Raises:
            Refused: there is no sum, by some client's fault.
        """

    @abstractmethod
    def saved(self) -> bytes:
        """All of it."""


class ClientEnd(ABC):
    """A client in one attempt at one sum. Save it after each answer and before the answer is sent.

    A question that comes again gets the same answer; another question in its place is refused: two answers could tell what one
    does not.

    Attributes:
        kinds: of the questions, in order.
        terms: what the client has agreed to. me: its id. nonce: of the attempt.
        told: its answers so far, each with the digest of its question.
    """

    kinds: ClassVar[tuple[Kind, ...]]

    def __init__(self, terms: SumTerms, me: str, nonce: str) -> None:
        self.terms, self.me, self.nonce = terms, me, nonce
        self.told: dict[Kind, tuple[str, bytes]] = {}

    def has_told(self, question: bytes) -> bool:
        """Whether this very question has been answered."""
        return packets.digest(question) in {asked for asked, _ in self.told.values()}

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the client takes part in no other attempt at the sum of this round."""

    def answer(self, question: bytes, vector: np.ndarray | None = None) -> bytes:
        """The answer to the next question, or to one that has been answered.

        Args:
            vector: uint32 [length], modulo 2^(8·width); needed where the answer holds it, where the one that came first counts.

        Raises:
            Refused: the question is not in turn, not for this client, not well-formed, or one that the protocol forbids to
            answer. ValueError: there is no such vector.
        """
        packet = Packet.read(question)
        if packet.kind in self.told:
            asked, answer = self.told[packet.kind]
            if asked != packets.digest(question):
                raise Refused(f"The question {packet.kind} has been answered, and this is another one.")
            return answer
        if len(self.told) == len(self.kinds):
            raise Refused("The sum is over: all of its questions have been answered.")
        packet.expect(self.kinds[len(self.told)], "down", self.terms, self.nonce, self.me)
        return self._tell(packet, question, self._body(packet, vector))

    @abstractmethod
    def _body(self, packet: Packet, vector: np.ndarray | None) -> bytes:
        """Of the answer to a question that is in turn; see :meth:`answer`."""

    def _tell(self, packet: Packet, question: bytes, body: bytes) -> bytes:
        answer = Packet(packet.kind, "up", self.terms.run, self.terms.round, self.nonce, self.me, body=body).written()
        self.told[packet.kind] = packets.digest(question), answer
        return answer

    @abstractmethod
    def saved(self) -> bytes:
        """All of it, secrets too: for a file that its owner alone may read."""


class SumProtocol(ABC):
    """How an engine begins both ends.

    Attributes:
        name: of the mechanism, and of its part in bills. server: what its end is.
        vector: the question that vectors answer. width: bytes of a number of a vector on the wire.
    """

    name: ClassVar[str]
    server: ClassVar[type[ServerEnd]]
    vector: ClassVar[Kind]
    width: ClassVar[int]

    @abstractmethod
    def terms(self, run: str, round: int, length: int) -> SumTerms:
        """See :class:`~weft.privacy.sums.sum_terms.SumTerms`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The questions, in order."""
        return self.server.kinds

    @abstractmethod
    def client(self, terms: SumTerms, me: str, question: bytes, before: ClientEnd | None) -> ClientEnd:
        """For a first question, with the answer to it.

        Args:
            before: the client's last state, of whatever round. It is of no use from now on.

        Raises:
            Refused: the question is another one, or of a round that is over for this client.
        """

    @abstractmethod
    def client_from(self, saved: bytes) -> ClientEnd:
        """Undo :meth:`ClientEnd.saved`. Raises: Refused: the bytes are torn."""

    @abstractmethod
    def bodies(self, terms: SumTerms, ids: tuple[str, ...], client: str) -> Mapping[Kind, tuple[int, int]]:
        """Bytes of a question's body and of its answer's, of each that the client is asked if everybody answers.

        Args:
            ids: of all clients, sorted.
        """

    def sizes(self, terms: SumTerms, ids: tuple[str, ...], client: str) -> Sizes:
        """What a sum in which everybody answers costs, without playing it; the first question alone where these are too few."""
        found: dict[tuple[Kind, Direction], tuple[int, int]] = {}
        for kind, (down, up) in self.bodies(terms, ids, client).items():
            if kind != self.kinds[0] and len(ids) < terms.least:
                continue
            told = ids if kind != self.kinds[0] else ()
            for direction, named, body in (("down", told, down), ("up", (), up)):
                head = Packet(kind, direction, terms.run, terms.round, NAMELESS, client, named)  # type: ignore[arg-type]
                found[kind, direction] = body, len(head.written()) + body  # type: ignore[index]
        return found


def protocol_of(privacy: Privacy) -> SumProtocol:
    """The one of a chain whose updates are summed; its packages are needed."""
    link = privacy.summed
    if isinstance(link, SecAgg):
        from weft.privacy.secagg.masking import Masking

        return Masking(link)
    assert isinstance(link, CKKS)
    from weft.privacy.ckks.sealing import Sealing

    return Sealing(link, privacy.key)
