"""A protocol by which a server gets a sum of its clients' vectors: a few questions, each to all of them or to some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np

from weft.communication import Direction
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import CKKS, SecAgg
from weft.privacy.sums.packets import Kind, Packet
from weft.privacy.sums.sum_terms import SumTerms

Sizes = Mapping[tuple[Kind, Direction], tuple[int, int]]
"""By message of one client the bytes of its body, and all of its bytes."""

NONCE = "0" * 32


class ServerEnd(ABC):
    """One attempt at one sum. Save it after each answer that is received; what comes of a killed server goes on from there.

    Each question goes to all of :attr:`asked`. Answers are received in any order; :meth:`close` ends a question for those who
    have not answered. A client that fails once is out, and so is one whose answer is refused. After the last, :meth:`total`.

    Attributes:
        terms: of the sum. asked: whom the question in turn goes to, sorted.
        closed: who has answered each question that has ended, sorted.
    """

    terms: SumTerms
    asked: tuple[str, ...]
    closed: dict[Kind, tuple[str, ...]]

    @classmethod
    @abstractmethod
    def begun(cls, terms: SumTerms, clients: Iterable[str]) -> Self:
        """With a new name for the attempt, so that nothing of one that came to nothing is taken for its own."""

    @property
    @abstractmethod
    def kind(self) -> Kind | None:
        """Of the question in turn; None when all have ended."""

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

    A question that comes again gets the same answer; another question in its place is refused.

    Attributes:
        terms: what the client has agreed to.
    """

    terms: SumTerms

    @abstractmethod
    def has_told(self, question: bytes) -> bool:
        """Whether this very question has been answered."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the client takes part in no other attempt at the sum of this round."""

    @abstractmethod
    def answer(self, question: bytes, vector: np.ndarray | None = None) -> bytes:
        """The answer to the next question, or to one that has been answered.

        Args:
            vector: uint32 [length], modulo 2^(8·width); needed where the answer holds it, where the one that came first counts.

        Raises:
            Refused: the question is not in turn, not for this client, not well-formed, or one that the protocol forbids to
            answer. ValueError: there is no such vector.
        """

    @abstractmethod
    def saved(self) -> bytes:
        """All of it, secrets too: for a file that its owner alone may read."""


class SumProtocol(ABC):
    """How an engine begins both ends.

    Attributes:
        name: of the mechanism, and of its part in bills. kinds: its questions, in order. vector: the one that vectors answer.
        width: bytes of a number of a vector on the wire.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    vector: ClassVar[Kind]
    width: ClassVar[int]

    @abstractmethod
    def terms(self, run: str, round: int, length: int) -> SumTerms:
        """See :class:`~weft.privacy.sums.sum_terms.SumTerms`."""

    @abstractmethod
    def server(self, terms: SumTerms, clients: Iterable[str]) -> ServerEnd:
        """A new attempt over these clients."""

    @abstractmethod
    def server_from(self, saved: bytes) -> ServerEnd:
        """Undo :meth:`ServerEnd.saved`. Raises: Refused: the bytes are torn."""

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
                head = Packet(kind, direction, terms.run, terms.round, NONCE, client, named)  # type: ignore[arg-type]
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
