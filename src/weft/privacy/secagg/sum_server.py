"""The server's end of a secure sum: who is asked what, who has answered, and the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from weft.communication.strict import Refused, quoted
from weft.privacy.secagg import secret_shares
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.secagg.pairwise import KEY, PUBLIC, SEALED, Attempt, check_public, public_key
from weft.privacy.secagg.secret_shares import SECRET
from weft.privacy.secagg.sum_client import committed
from weft.privacy.sums import packets
from weft.privacy.sums.packets import SECAGG, Kind, Packet
from weft.privacy.sums.protocol import ServerEnd
from weft.privacy.sums.sum_terms import SumTerms


class SumServer(ServerEnd):
    """One attempt at one sum."""

    kinds = SECAGG

    def __init__(self, terms: SumTerms, clients: Iterable[str], nonce: str) -> None:
        super().__init__(terms, clients, nonce)
        self._told: dict[Kind, dict[str, bytes]] = {kind: {} for kind in SECAGG}  # of masked vectors, digests
        self._sum = np.zeros(terms.length, np.uint32)

    @property
    def waiting(self) -> tuple[str, ...]:
        kind = self.kind
        return () if kind is None else tuple(c for c in self.asked if c not in self._told[kind])

    def question(self, client: str) -> bytes:
        kind = self.kind
        if kind is None or client not in self.asked:
            raise ValueError(f"{client} is asked nothing")
        ids: tuple[str, ...] = ()
        body = b""
        if kind != "keys":
            ids = self.asked
        if kind == "shares":
            body = b"".join(self._told["keys"][v] for v in self._graph().of(client))
        elif kind == "masked":
            graph = self._graph()
            body = b"".join(self._seal(graph, v, client) for v in graph.of(client) if v in self.asked)
        return Packet(kind, "down", self.terms.run, self.terms.round, self.nonce, client, ids, body).written()

    def receive(self, client: str, answer: bytes) -> None:
        kind = self.kind
        if kind is None or client not in self.asked:
            raise Refused(f"Nothing is asked of {quoted(client)}.")
        packet = Packet.read(answer)
        packet.expect(kind, "up", self.terms, self.nonce, client, self._size(kind, client))
        kept = bytes.fromhex(packets.digest(answer)) if kind == "masked" else packet.body
        if (before := self._told[kind].get(client)) is not None:
            if before != kept:
                raise Refused(f"{quoted(client)} has answered {kind} before, and otherwise.")
            return
        if kind == "keys":
            check_public(kept, client)
            others = {key for both in self._told["keys"].values() for key in (both[:KEY], both[KEY:])}
            if kept[:KEY] == kept[KEY:] or others & {kept[:KEY], kept[KEY:]}:
                raise Refused(f"A public key of {quoted(client)} is there already.")
        elif kind == "masked":
            self._sum += packets.unpacked(packet.body, self.terms.width)
        self._told[kind][client] = kept

    def close(self) -> Mapping[str, str]:
        kind = self.kind
        if kind is None:
            raise ValueError("all questions have ended")
        left = tuple(sorted(self._told[kind]))
        if kind == "keys":
            Neighbourhood(self.terms, left).check(left, left)
        elif kind == "shares":
            self._graph().check(left, left)
        elif kind == "masked":
            self._graph().check(self.asked, left)
        else:
            graph = self._graph()
            graph.check_holders(graph.undone(self.closed["shares"], self.closed["masked"]), left)
        self.closed[kind] = self.asked = left
        return {}

    @property
    def summed(self) -> tuple[str, ...]:
        return self.closed["masked"]

    def total(self) -> np.ndarray:
        """Raises: Refused: a client has told a wrong share, so that there is no sum."""
        if self.kind is not None:
            raise ValueError(f"the question {self.kind} has not ended")
        graph, length = self._graph(), self.terms.length
        attempt = Attempt(self.terms.run, self.terms.round, self.nonce, graph.ids)
        keys, summed = self._told["keys"], set(self.closed["masked"])
        total = self._sum.copy()
        for client in graph.undone(self.closed["shares"], self.closed["masked"]):
            secret = self._secret(graph, client)
            if client in summed:
                if committed(secret) != self._told["shares"][client][:SECRET]:
                    raise _wrong(client)
                total -= attempt.own_mask(secret, client, length)
                continue
            if public_key(secret) != keys[client][:KEY]:
                raise _wrong(client)
            for v in summed.intersection(graph.of(client)):  # the negative of each is in the sum
                total += attempt.mask(secret, (client, keys[client]), (v, keys[v]), length)
        return total & np.uint32(2 ** (8 * self.terms.width) - 1)

    def saved(self) -> bytes:
        head = {"terms": self.terms.saved(), "nonce": self.nonce, "asked": self.asked, "closed": self.closed}
        blobs = {f"{kind}/{client}": blob for kind, told in self._told.items() for client, blob in told.items()}
        return packets.save(head, {"sum": self._sum.astype("<u4").tobytes(), **blobs})

    @classmethod
    def loaded(cls, data: bytes) -> Self:
        head, blobs = packets.load(data)
        made = cls(SumTerms.loaded(head["terms"]), head["asked"], head["nonce"])
        made.closed = {kind: tuple(head["closed"][kind]) for kind in SECAGG if kind in head["closed"]}
        made._sum = np.frombuffer(blobs.pop("sum"), "<u4").astype(np.uint32)
        for name, blob in blobs.items():
            kind, _, client = name.partition("/")
            made._told[kind][client] = blob  # type: ignore[index]
        return made

    def _graph(self) -> Neighbourhood:
        return Neighbourhood(self.terms, self.closed["keys"])

    def _seal(self, graph: Neighbourhood, sender: str, receiver: str) -> bytes:
        at = SECRET + SEALED * graph.of(sender).index(receiver)
        return self._told["shares"][sender][at : at + SEALED]

    def _held(self, graph: Neighbourhood, client: str) -> list[str]:
        """Of whom a client holds shares, in the order in which it tells them."""
        return [v for v in graph.holders(client) if v in self.closed["shares"]]

    def _size(self, kind: Kind, client: str) -> int:
        """Bytes of an answer's body."""
        if kind == "keys":
            return PUBLIC
        if kind == "shares":
            return SECRET + SEALED * len(self._graph().of(client))
        if kind == "masked":
            return self.terms.width * self.terms.length
        return SECRET * len(self._held(self._graph(), client))

    def _secret(self, graph: Neighbourhood, client: str) -> bytes:
        """The one of a client's two secrets of which its holders have told their shares."""
        shares = {}
        for place, holder in enumerate(graph.holders(client)):
            if holder in self._told["unmask"]:
                at = SECRET * self._held(graph, holder).index(client)
                shares[place] = self._told["unmask"][holder][at : at + SECRET]
        return secret_shares.combine(shares, graph.threshold)


def _wrong(client: str) -> Refused:
    return Refused(f"Some of those who hold shares of {quoted(client)} have told wrong ones, so that there is no sum.")
