"""A client's end of a secure sum: four questions, each answered once.

What an answer holds, for a client with k neighbours of whom k′ have told shares, a vector of n integers of w bytes:

========== ================================================================================= ==================
``keys``   two public keys                                                                   64
``shares`` a digest of the seed of its own mask, then a seal for each neighbour, in order    32 + 92·k
``masked`` its vector and its masks, added up                                                w·n
``unmask`` a share of each neighbour's secret and one of its own, in the order of their ids  32·(k′ + 1)
========== ================================================================================= ==================
"""

from __future__ import annotations

import hashlib
import os
from typing import Self

import numpy as np

from weft.communication.strict import Refused, plain, quoted
from weft.privacy.secagg import secret_shares
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.secagg.pairwise import KEY, PUBLIC, SEALED, Attempt, check_public, public_key
from weft.privacy.secagg.secret_shares import SECRET
from weft.privacy.sums import packets
from weft.privacy.sums.packets import SECAGG, Kind, Packet
from weft.privacy.sums.protocol import ClientEnd
from weft.privacy.sums.sum_terms import SumTerms


class SumClient(ClientEnd):
    """A client in one attempt at one sum. Another answer could tell both shares of a neighbour, or two vectors under one mask."""

    kinds = SECAGG

    def __init__(self, terms: SumTerms, me: str, nonce: str) -> None:
        super().__init__(terms, me, nonce)
        self._ids: dict[Kind, tuple[str, ...]] = {}  # whom questions have told of
        self._private: dict[str, bytes] = {}  # mask, seal, seed
        self._public: dict[str, bytes] = {}  # own keys and those of neighbours
        self._held: dict[str, bytes] = {}  # shares of own secrets and of neighbours'

    @classmethod
    def begun(cls, terms: SumTerms, me: str, question: bytes, before: SumClient | None = None) -> Self:
        """For a first question (``keys``), with new secrets and the answer to it. So begins another attempt at a sum, too.

        Args:
            before: the client's last state, of whatever round. It is of no use from now on.

        Raises:
            Refused: the question is another one, or of a round that is over for this client: it has told shares in it, and two
                sums over different clients would give away those who are in one of them alone.
        """
        packet = Packet.read(question)
        packet.expect_first("keys", terms, me)
        if before is not None and before.terms.run == terms.run:
            last = before.terms.round
            if terms.round < last or (terms.round == last and "unmask" in before.told):
                raise Refused(f"Round {plain(terms.round)} is over: this client has told its shares in round {last}.")
        made = cls(terms, me, packet.nonce)
        made._private = {name: os.urandom(KEY) for name in ("mask", "seal", "seed")}
        made._public[me] = public_key(made._private["mask"]) + public_key(made._private["seal"])
        made._tell(packet, question, made._public[me])
        return made

    @property
    def over(self) -> bool:
        """It has told its shares: two sums over different clients would give away those who are in one of them alone."""
        return "unmask" in self.told

    def _body(self, packet: Packet, vector: np.ndarray | None) -> bytes:
        if packet.kind == "shares":
            return self._shares(packet)
        return self._masked(packet, vector) if packet.kind == "masked" else self._unmask(packet)

    def saved(self) -> bytes:
        groups: dict[str, dict[str, bytes]] = {
            "private": self._private,
            "public": self._public,
            "held": self._held,
            "told": {str(kind): answer for kind, (_, answer) in self.told.items()},
        }
        head = {
            "terms": self.terms.saved(),
            "me": self.me,
            "nonce": self.nonce,
            "asked": {kind: asked for kind, (asked, _) in self.told.items()},
            "ids": self._ids,
        }
        return packets.save(head, {f"{group}/{name}": blob for group, blobs in groups.items() for name, blob in blobs.items()})

    @classmethod
    def loaded(cls, data: bytes) -> Self:
        """Undo :meth:`saved`. Raises: Refused: the bytes are torn."""
        head, blobs = packets.load(data)
        made = cls(SumTerms.loaded(head["terms"]), head["me"], head["nonce"])
        made.told = {kind: (head["asked"][kind], blobs[f"told/{kind}"]) for kind in SECAGG if kind in head["asked"]}
        made._ids = {kind: tuple(head["ids"][kind]) for kind in SECAGG if kind in head["ids"]}
        for group, into in (("private", made._private), ("public", made._public), ("held", made._held)):
            into.update({name.partition("/")[2]: blob for name, blob in blobs.items() if name.startswith(f"{group}/")})
        return made

    def _attempt(self, ids: tuple[str, ...]) -> Attempt:
        return Attempt(self.terms.run, self.terms.round, self.nonce, ids)

    def _tell(self, packet: Packet, question: bytes, body: bytes) -> bytes:
        self._ids[packet.kind] = packet.ids
        return super()._tell(packet, question, body)

    def _graph(self, ids: tuple[str, ...]) -> Neighbourhood:
        return Neighbourhood(self.terms, ids)

    def _person(self, client: str) -> tuple[str, bytes]:
        return client, self._public[client]

    def _check_there(self, ids: tuple[str, ...], known: tuple[str, ...]) -> None:
        if strange := sorted(set(ids) - set(known)):
            raise Refused(f"The question tells of {quoted(strange[0])}, of whom the one before did not.")
        if self.me not in ids:
            raise Refused(f"The question leaves out {quoted(self.me)}, whom it asks.")

    def _shares(self, packet: Packet) -> bytes:
        self._check_there(packet.ids, packet.ids)
        graph = self._graph(packet.ids)
        graph.check(packet.ids, packet.ids)
        neighbours = graph.of(self.me)
        packet.expect("shares", "down", self.terms, self.nonce, self.me, PUBLIC * len(neighbours))
        public = self._public | {v: packet.body[PUBLIC * i : PUBLIC * (i + 1)] for i, v in enumerate(neighbours)}
        if len({key for both in public.values() for key in (both[:KEY], both[KEY:])}) < 2 * len(public):
            raise Refused("Two of the public keys are the same.")
        for v in neighbours:
            check_public(public[v], v)
        holders = graph.holders(self.me)
        seed = secret_shares.split(self._private["seed"], graph.threshold, len(holders))
        mask = secret_shares.split(self._private["mask"], graph.threshold, len(holders))
        both = {v: a + b for v, a, b in zip(holders, seed, mask, strict=True)}
        self._public, self._held[self.me] = public, both[self.me]
        person, attempt = self._person(self.me), self._attempt(packet.ids)
        seals = [attempt.seal(both[v], self._private["seal"], person, self._person(v)) for v in neighbours]
        return committed(self._private["seed"]) + b"".join(seals)

    def _masked(self, packet: Packet, vector: np.ndarray | None) -> bytes:
        if vector is None or vector.dtype != np.uint32 or vector.shape != (self.terms.length,):
            raise ValueError(f"a vector of {self.terms.length} unsigned integers of 32 bits is to be masked")
        self._check_there(packet.ids, self._ids["shares"])
        graph = self._graph(self._ids["shares"])
        graph.check(packet.ids, packet.ids)
        neighbours = [v for v in graph.of(self.me) if v in packet.ids]
        packet.expect("masked", "down", self.terms, self.nonce, self.me, SEALED * len(neighbours))
        person, attempt = self._person(self.me), self._attempt(self._ids["shares"])
        held = {}
        for i, v in enumerate(neighbours):
            sealed = packet.body[SEALED * i : SEALED * (i + 1)]
            held[v] = attempt.unseal(sealed, self._private["seal"], person, self._person(v))
        self._held |= held
        total = vector + attempt.own_mask(self._private["seed"], self.me, self.terms.length)
        for v in neighbours:
            total += attempt.mask(self._private["mask"], person, self._person(v), self.terms.length)
        return packets.packed(total, self.terms.width)

    def _unmask(self, packet: Packet) -> bytes:
        """Of each client one share: of its own mask if it is in the sum, of its key if not. Then all secrets are forgotten."""
        self._check_there(packet.ids, self._ids["masked"])
        graph = self._graph(self._ids["shares"])
        graph.check(self._ids["masked"], packet.ids)
        packet.expect("unmask", "down", self.terms, self.nonce, self.me, 0)
        summed = set(packet.ids)
        told = [self._held[v][:SECRET] if v in summed else self._held[v][SECRET:] for v in sorted(self._held)]
        for secrets in (self._private, self._public, self._held):
            secrets.clear()
        return b"".join(told)


def committed(seed: bytes) -> bytes:
    """32 bytes by which the server knows a seed that it has put together, and which say nothing about it before."""
    return hashlib.sha256(b"weft secagg seed" + seed).digest()
