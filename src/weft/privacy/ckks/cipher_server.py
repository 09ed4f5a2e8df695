"""The server's end of a sum of ciphertexts: who is asked what, who has answered, and the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from weft.communication.strict import Refused, quoted
from weft.privacy.ckks.cipher import FINGERPRINT, SIZE, Cipher, ciphertexts
from weft.privacy.sums import packets
from weft.privacy.sums.packets import CKKS, Packet
from weft.privacy.sums.protocol import ServerEnd
from weft.privacy.sums.sum_terms import SumTerms


class CipherServer(ServerEnd):
    """One attempt at one sum. Ciphertexts of each key are added up by themselves, and the sum is of the key that most have."""

    kinds = CKKS

    def __init__(self, terms: SumTerms, clients: Iterable[str], nonce: str) -> None:
        super().__init__(terms, clients, nonce)
        self._cipher = Cipher()
        self._told: dict[str, tuple[str, str]] = {}  # client -> digest of its sealed answer, its key's fingerprint
        self._sums: dict[str, bytes] = {}  # by fingerprint
        self._openers: list[str] = []  # in their order; the first is asked
        self._total: bytes | None = None

    @property
    def waiting(self) -> tuple[str, ...]:
        if self.kind == "sealed":
            return tuple(c for c in self.asked if c not in self._told)
        return self.asked if self.kind == "opened" and self._total is None else ()

    def question(self, client: str) -> bytes:
        kind = self.kind
        if kind is None or client not in self.asked:
            raise ValueError(f"{client} is asked nothing")
        ids, body = (self.summed, self._sum) if kind == "opened" else ((), b"")
        return Packet(kind, "down", self.terms.run, self.terms.round, self.nonce, client, ids, body).written()

    def receive(self, client: str, answer: bytes) -> None:
        kind = self.kind
        if kind is None or client not in self.asked:
            raise Refused(f"Nothing is asked of {quoted(client)}.")
        packet = Packet.read(answer)
        sealed = FINGERPRINT + SIZE * ciphertexts(self.terms.length + 1)
        size = sealed if kind == "sealed" else self.terms.width * self.terms.length
        packet.expect(kind, "up", self.terms, self.nonce, client, size)
        if kind == "opened":
            if self._total not in (None, packet.body):
                raise Refused(f"{quoted(client)} has answered opened before, and otherwise.")
            self._total = packet.body
            return
        known = packets.digest(answer), packet.body[:FINGERPRINT].hex()
        if client in self._told:
            if self._told[client] != known:
                raise Refused(f"{quoted(client)} has answered sealed before, and otherwise.")
            return
        texts, key = packet.body[FINGERPRINT:], known[1]
        if key in self._sums:
            self._sums[key] = self._cipher.added(self._sums[key], texts)
        else:
            self._cipher.check(texts)
            self._sums[key] = texts
        self._told[client] = known

    def close(self) -> Mapping[str, str]:
        """See :meth:`~weft.privacy.sums.protocol.ServerEnd.close`. Who opens the sum is asked for it alone, and the next one
        after it, until one has answered; each round begins with another."""
        kind = self.kind
        if kind is None:
            raise ValueError("all questions have ended")
        if kind == "sealed":
            left = tuple(sorted(c for c, (_, key) in self._told.items() if key == self._key))
            if len(left) < self.terms.least:
                others = ", ".join(quoted(c) for c in sorted(self._told) if c not in left)
                copied = f" The key of {others} is another: copy the same sums.ckks to every site." if others else ""
                raise Refused(
                    f"Only {len(left)} clients have sealed vectors for one sum, which is of {self.terms.least} or more.{copied}"
                )
            self.closed[kind] = left
            first = self.terms.round % len(left)
            self._openers = [*left[first:], *left[:first]]
            self.asked = (self._openers[0],)
            return {c: "its key is another than that of most clients" for c in self._told if c not in left}
        if self._total is not None:
            self.closed[kind] = self.asked
            return {}
        self._openers.pop(0)
        if not self._openers:
            raise Refused("None of the clients in the sum has opened it.")
        self.asked = (self._openers[0],)
        return {}

    @property
    def summed(self) -> tuple[str, ...]:
        return self.closed["sealed"]

    def total(self) -> np.ndarray:
        if self._total is None:
            raise ValueError("nobody has opened the sum")
        return packets.unpacked(self._total, self.terms.width)

    @property
    def _key(self) -> str:
        """Whose sum counts: the fingerprint that most clients have, the smallest of equally many."""
        found = [key for _, key in self._told.values()]
        return min(found, key=lambda key: (-found.count(key), key), default="")

    @property
    def _sum(self) -> bytes:
        return self._sums[self._key]

    def saved(self) -> bytes:
        names = ("nonce", "asked", "closed")
        head = {n: getattr(self, n) for n in names} | {"terms": self.terms.saved(), "told": self._told, "openers": self._openers}
        total = {} if self._total is None else {"total": self._total}
        return packets.save(head, total | {f"sum/{key}": text for key, text in self._sums.items()})

    @classmethod
    def loaded(cls, data: bytes) -> Self:
        head, blobs = packets.load(data)
        made = cls(SumTerms.loaded(head["terms"]), head["asked"], head["nonce"])
        made.closed = {kind: tuple(head["closed"][kind]) for kind in CKKS if kind in head["closed"]}
        made._told = {client: (told[0], told[1]) for client, told in head["told"].items()}
        made._openers = list(head["openers"])
        made._total = blobs.pop("total", None)
        made._sums = {name.removeprefix("sum/"): text for name, text in blobs.items()}
        return made
