"""Secure sums from their first question to their sum, with clients that stop answering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from weft.privacy.secagg.sum_client import SumClient
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums.packets import SECAGG, Kind
from weft.privacy.sums.sum_terms import SumTerms

LENGTH = 50


def names(n: int) -> list[str]:
    return [f"site {i}" for i in range(n)]


def vectors(n: int, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Any 32 bits, the same each time."""
    rng = np.random.default_rng(n)
    return {c: rng.integers(0, 2**32, length, dtype=np.uint32) for c in names(n)}


def plain_sum(values: Mapping[str, np.ndarray], of: Collection[str], width: int = 4) -> list[int]:
    """In Python's own integers."""
    return [sum(column) % 256**width for column in zip(*(values[c].tolist() for c in of), strict=True)]


class Sum:
    """Both ends of one sum, stopped before any question.

    Attributes:
        questions, answers: that have been sent, by kind and client.
    """

    def __init__(self, terms: SumTerms, values: Mapping[str, np.ndarray]) -> None:
        self.terms, self.values = terms, values
        self.server = SumServer.begun(terms, values)
        self.clients: dict[str, SumClient] = {}
        self.questions: dict[tuple[Kind, str], bytes] = {}
        self.answers: dict[tuple[Kind, str], bytes] = {}
        self.between: Callable[[], None] = lambda: None

    def reload(self) -> None:
        """Both ends from their files."""
        self.server = SumServer.loaded(self.server.saved())
        self.clients = {c: SumClient.loaded(client.saved()) for c, client in self.clients.items()}

    def ask(self, silent: Collection[str] = ()) -> None:
        """One question to all whose turn it is, not yet ended."""
        kind = self.server.kind
        assert kind is not None
        for client in self.server.asked:
            self.questions[kind, client] = question = self.server.question(client)
            if client in silent:
                continue
            self.between()
            if kind == "keys":
                self.clients[client] = SumClient.begun(self.terms, client, question)
            answer = self.clients[client].answer(question, self.values[client])
            self.answers[kind, client] = answer
            self.between()
            self.server.receive(client, answer)
            self.between()

    def until(self, kind: Kind, silent: Mapping[Kind, Collection[str]] | None = None) -> Sum:
        """All questions before ``kind``; ``silent`` tells who stops at which."""
        for each in SECAGG[: SECAGG.index(kind)]:
            self.ask((silent or {}).get(each, ()))
            self.server.close()
        return self

    def played(self, silent: Mapping[Kind, Collection[str]] | None = None) -> Sum:
        """All of them."""
        self.until("unmask", silent)
        self.ask((silent or {}).get("unmask", ()))
        self.server.close()
        return self


def begun(n: int, length: int = LENGTH, **terms: object) -> Sum:
    return Sum(SumTerms("a run", 3, length, **terms), vectors(n, length))  # type: ignore[arg-type]
