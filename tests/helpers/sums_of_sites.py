"""Hidden sums between sites in this process, of which some stop answering, and all that reaches their coordinator."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import tiny
from every_method import small
from toy_runs import Told
from weft.communication.strict import Refused
from weft.engines.question import Question, answer
from weft.engines.remote import Remote
from weft.federation.client import ClientState
from weft.federation.method import Method
from weft.privacy.hiding import Privacy, mechanisms
from weft.testing.plays import shallow
from weft.testing.sites import Loopback, remote

SIZES = (5, 3, 4, 6)


@functools.cache
def key() -> bytes:
    """Of the encrypted sums of all tests."""
    from weft.privacy.ckks.cipher import new_key

    return new_key()


def plan(text: str, **more: Any) -> Privacy:
    return Privacy(mechanisms(text), **{"insecure": True, "rounds": 2, "key": key() if "ckks" in text else b""} | more)


def here(method: Method, text: str, **more: Any) -> tiny.Federation:
    """A simulation."""
    return tiny.federation(method, shallow(method), **{"sizes": SIZES, "seed": 3, "privacy": plan(text)} | more)


class Watched:
    """Carries questions, and notes them.

    Attributes:
        silent: by kind of question, in round ``when``, who does not answer it. heard: (kind, client, answer), in order.
    """

    label = "loopback"

    def __init__(self, loop: Loopback, silent: Mapping[str, Collection[str]], when: int):
        self.loop, self.silent, self.when = loop, silent, when
        self.asked: list[tuple[str, str, bytes]] = []
        self.heard: list[tuple[str, str, bytes]] = []

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        return []

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = {}
        for client, raw in questions.items():
            question = Question.decode(raw)
            self.asked.append((question.what, client, raw))
            if question.round.index == self.when and client in self.silent.get(question.what, ()):
                continue
            try:
                found[client] = answer(self.loop.sites[client], raw)
            except Refused:
                continue
            self.heard.append((question.what, client, found[client]))
        return found


class Sites:
    """A federation of sites, and what its coordinator says."""

    def __init__(
        self, method: Method, text: str, silent: Mapping[str, Collection[str]] | None = None, when: int = 0, **more: Any
    ):
        self.run, self.loop = remote(method, model=shallow(method), **{"sizes": SIZES, "seed": 3, "privacy": plan(text)} | more)
        self.wire = Watched(self.loop, silent or {}, when)
        self.told = Told()
        self.run.simulation.setup.observer = self.told
        assert isinstance(self.run.simulation.turns, Remote)
        self.run.simulation.turns.transport = self.wire

    def round(self, t: int) -> dict[str, Any]:
        record = self.run.simulation.round(t)
        assert record is not None
        return record


def sites(slug: str = "fedit", text: str = "secagg", **more: Any) -> Sites:
    return Sites(small(slug), text, **more)
