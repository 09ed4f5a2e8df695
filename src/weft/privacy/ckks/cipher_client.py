"""A client's end of a sum of ciphertexts.

What a message holds, for a vector of n integers in c = ⌈(n + 1) / 4096⌉ ciphertexts:

========== =========================================== ==============
``sealed``   answer: fingerprint of its key, ciphertexts 16 + 131,217·c
``opened``   question: the sum of the ciphertexts        131,217·c
``opened``   answer: the sum, modulo 2^(8·width)         w·n
========== =========================================== ==============

The last number of each vector is a 1, so that whoever opens the sum sees how many are in it.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from weft.communication.strict import Refused, plain, quoted
from weft.privacy.ckks.cipher import Cipher
from weft.privacy.sums import packets
from weft.privacy.sums.packets import CKKS, Packet
from weft.privacy.sums.protocol import ClientEnd
from weft.privacy.sums.sum_terms import SumTerms


class CipherClient(ClientEnd):
    """A client in the only attempt at one sum.

    Args:
        cipher: with the key of all sites.
    """

    kinds = CKKS

    def __init__(self, terms: SumTerms, me: str, nonce: str, cipher: Cipher) -> None:
        super().__init__(terms, me, nonce)
        self.cipher = cipher

    @classmethod
    def begun(cls, terms: SumTerms, me: str, question: bytes, cipher: Cipher, before: CipherClient | None = None) -> Self:
        """For a first question (``sealed``), which :meth:`answer` then answers.

        Args:
            before: the client's last state, of whatever round.

        Raises:
            Refused: the question is another one, or of a round in which the client has sealed its vector: of two sums over
                different clients, one opened here and one there, the difference would give somebody away.
        """
        packet = Packet.read(question)
        packet.expect_first("sealed", terms, me)
        if before is not None and before.terms.run == terms.run and terms.round <= before.terms.round:
            raise Refused(f"Round {plain(terms.round)} is over: this client has sealed its vector in {before.terms.round}.")
        return cls(terms, me, packet.nonce, cipher)

    @property
    def over(self) -> bool:
        return True

    def _body(self, packet: Packet, vector: np.ndarray | None) -> bytes:
        return self._sealed(vector) if packet.kind == "sealed" else self._opened(packet)

    def _sealed(self, vector: np.ndarray | None) -> bytes:
        if vector is None or vector.dtype != np.uint32 or vector.shape != (self.terms.length,):
            raise ValueError(f"a vector of {self.terms.length} unsigned integers of 32 bits is to be sealed")
        return self.cipher.fingerprint + self.cipher.seal(np.append(vector.view(np.int32).astype(np.int64), 1))

    def _opened(self, packet: Packet) -> bytes:
        if self.me not in packet.ids:
            raise Refused(f"The question leaves out {quoted(self.me)}, whom it asks.")
        if len(packet.ids) < self.terms.least:
            raise Refused(f"The sum is of {len(packet.ids)} clients, and {self.terms.least} is the least that one is opened of.")
        numbers = self.cipher.open(packet.body, self.terms.length + 1)
        if numbers[-1] != len(packet.ids):
            raise Refused(
                f"The sum is of {plain(int(numbers[-1]))} vectors, and the question tells of {len(packet.ids)} clients."
            )
        return packets.packed((numbers[:-1] & 0xFFFFFFFF).astype(np.uint32), self.terms.width)

    def saved(self) -> bytes:
        head = {
            "terms": self.terms.saved(),
            "me": self.me,
            "nonce": self.nonce,
            "asked": {k: a for k, (a, _) in self.told.items()},
        }
        return packets.save(head, {kind: answer for kind, (_, answer) in self.told.items()})

    @classmethod
    def loaded(cls, data: bytes, cipher: Cipher) -> Self:
        """Undo :meth:`saved`. Raises: Refused: the bytes are torn."""
        head, blobs = packets.load(data)
        made = cls(SumTerms.loaded(head["terms"]), head["me"], head["nonce"], cipher)
        made.told = {kind: (head["asked"][kind], blobs[kind]) for kind in CKKS if kind in blobs}
        return made
