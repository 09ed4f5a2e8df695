"""Bytes of a secure sum in which everybody answers, without playing it."""

from __future__ import annotations

from weft.communication import Direction
from weft.privacy.secagg.packets import KINDS, NONCE, Kind, Packet
from weft.privacy.secagg.pairwise import PUBLIC, SEALED
from weft.privacy.secagg.secret_shares import SECRET
from weft.privacy.secagg.sum_terms import SumTerms


def bodies(terms: SumTerms, clients: int) -> dict[Kind, tuple[int, int]]:
    """By question the bytes of its body and of its answer's, for each of so many clients (see
    :mod:`weft.privacy.secagg.sum_client`)."""
    k = terms.neighbours(clients)
    return {
        "keys": (0, PUBLIC),
        "shares": (PUBLIC * k, SECRET + SEALED * k),
        "masked": (SEALED * k, terms.width * terms.length),
        "unmask": (0, SECRET * (k + 1)),
    }


def whole(terms: SumTerms, ids: tuple[str, ...], client: str) -> dict[tuple[Kind, Direction], tuple[int, int]]:
    """By message its body and all of it; of the first question alone where these are too few for a sum.

    Args:
        ids: of all clients, sorted.
    """
    kinds = KINDS if len(ids) >= terms.least else KINDS[:1]
    found: dict[tuple[Kind, Direction], tuple[int, int]] = {}
    for kind in kinds:
        down, up = bodies(terms, len(ids))[kind]
        for direction, body in (("down", down), ("up", up)):
            told = ids if direction == "down" and kind != "keys" else ()
            head = Packet(kind, direction, terms.run, terms.round, "0" * 2 * NONCE, client, told)  # type: ignore[arg-type]
            found[kind, direction] = body, len(head.written()) + body  # type: ignore[index]
    return found
