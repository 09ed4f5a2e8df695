"""Sums of ciphertexts as an engine knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from weft.errors import UserError
from weft.privacy.ckks.cipher import FINGERPRINT, SIZE, SLOTS, Cipher, ciphertexts
from weft.privacy.ckks.cipher_client import CipherClient
from weft.privacy.ckks.cipher_server import CipherServer
from weft.privacy.mechanism import CKKS
from weft.privacy.sums.packets import Kind
from weft.privacy.sums.protocol import ClientEnd, SumProtocol
from weft.privacy.sums.sum_terms import SumTerms


@dataclass(frozen=True)
class Sealing(SumProtocol):
    """Of a run's ``ckks``.

    Args:
        key: of all sites, at a site.
    """

    link: CKKS
    key: bytes = b""

    name: ClassVar[str] = CKKS.name
    server: ClassVar[type[CipherServer]] = CipherServer
    vector: ClassVar[Kind] = "sealed"
    width: ClassVar[int] = SIZE // SLOTS

    def terms(self, run: str, round: int, length: int) -> SumTerms:
        return SumTerms(run, round, length, least=self.link.least)

    def client(self, terms: SumTerms, me: str, question: bytes, before: ClientEnd | None) -> CipherClient:
        assert before is None or isinstance(before, CipherClient)
        return CipherClient.begun(terms, me, question, self._cipher, before)

    def client_from(self, saved: bytes) -> CipherClient:
        return CipherClient.loaded(saved, self._cipher)

    def bodies(self, terms: SumTerms, ids: tuple[str, ...], client: str) -> Mapping[Kind, tuple[int, int]]:
        """See :mod:`weft.privacy.ckks.cipher_client`; one client opens the sum."""
        texts = SIZE * ciphertexts(terms.length + 1)
        found: dict[Kind, tuple[int, int]] = {"sealed": (0, FINGERPRINT + texts)}
        if client == ids[terms.round % len(ids)]:
            found["opened"] = texts, terms.width * terms.length
        return found

    @cached_property
    def _cipher(self) -> Cipher:
        if not self.key:
            raise UserError("a site of encrypted sums needs their key: make one with weft keys sums, once, for all sites.")
        return Cipher(self.key)
