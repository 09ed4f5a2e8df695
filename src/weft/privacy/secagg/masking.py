"""Sums under masks as an engine knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from weft.privacy.mechanism import SecAgg
from weft.privacy.secagg.pairwise import PUBLIC, SEALED
from weft.privacy.secagg.secret_shares import SECRET
from weft.privacy.secagg.sum_client import SumClient
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums.packets import Kind
from weft.privacy.sums.protocol import ClientEnd, SumProtocol
from weft.privacy.sums.sum_terms import SumTerms


@dataclass(frozen=True)
class Masking(SumProtocol):
    """Of a run's ``secagg``."""

    link: SecAgg

    name: ClassVar[str] = SecAgg.name
    server: ClassVar[type[SumServer]] = SumServer
    vector: ClassVar[Kind] = "masked"
    width: ClassVar[int] = 4

    def terms(self, run: str, round: int, length: int) -> SumTerms:
        link = self.link
        return SumTerms(run, round, length, self.width, least=link.least, degree=link.degree, share=link.share)

    def client(self, terms: SumTerms, me: str, question: bytes, before: ClientEnd | None) -> SumClient:
        assert before is None or isinstance(before, SumClient)
        return SumClient.begun(terms, me, question, before)

    def client_from(self, saved: bytes) -> SumClient:
        return SumClient.loaded(saved)

    def bodies(self, terms: SumTerms, ids: tuple[str, ...], client: str) -> Mapping[Kind, tuple[int, int]]:
        """See :mod:`weft.privacy.secagg.sum_client`."""
        k = terms.neighbours(len(ids))
        return {
            "keys": (0, PUBLIC),
            "shares": (PUBLIC * k, SECRET + SEALED * k),
            "masked": (SEALED * k, terms.width * terms.length),
            "unmask": (0, SECRET * (k + 1)),
        }
