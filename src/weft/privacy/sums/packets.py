"""The messages of a secure sum, read strictly; and the states of both ends as bytes.

A message is the length of its head in 4 bytes (the lowest first), the head as JSON, and raw bytes. There is one way to write
each: what is written in another is refused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weft.communication import Direction
from weft.communication.strict import TEXT_LIMIT, Refused, is_number, is_text, plain, quoted, read_json, write_json
from weft.privacy.sums.sum_terms import LONGEST, SumTerms

Kind = Literal["keys", "shares", "masked", "unmask", "sealed", "opened"]
SECAGG: tuple[Kind, ...] = ("keys", "shares", "masked", "unmask")
CKKS: tuple[Kind, ...] = ("sealed", "opened")
"""The questions of each protocol in their order."""

KINDS = SECAGG + CKKS

NONCE = 16
"""Bytes that tell apart two attempts at the sum of one round."""


@dataclass(frozen=True)
class Packet:
    """A question or its answer.

    Attributes:
        kind, direction: which.
        run, round: of the sum.
        nonce: of the attempt at it, 32 hexadecimal digits that the server draws.
        client: who is asked or answers.
        ids: those whom a question tells of, sorted; none in an answer.
        body: keys, sealed shares, masked integers or shares (:mod:`weft.privacy.secagg.sum_client`), or ciphertexts
            (:mod:`weft.privacy.ckks.cipher_client`).
    """

    kind: Kind
    direction: Direction
    run: str
    round: int
    nonce: str
    client: str
    ids: tuple[str, ...] = ()
    body: bytes = b""

    def written(self) -> bytes:
        head = {k: v for k, v in vars(self).items() if k != "body"}
        return _joined(head, self.body)

    @classmethod
    def read(cls, data: bytes) -> Packet:
        """Raises: Refused: these bytes are no message that :meth:`written` writes."""
        head, body = _parted(data, "message")
        ids = head.pop("ids", None)
        if head.keys() != {"kind", "direction", "run", "round", "nonce", "client"}:
            raise Refused("The head of the message has not the entries of a secure sum's.")
        if head["kind"] not in KINDS or head["direction"] not in ("down", "up"):
            raise Refused("The message is no question of a secure sum and no answer to one.")
        if not is_number(head["round"], int):
            raise Refused("The round of the message is no integer.")
        if not isinstance(ids, list) or not all(_is_id(i) for i in (*ids, head["client"], head["run"], head["nonce"])):
            raise Refused(f"The names in the message are not all text of 1 to {LONGEST} characters.")
        if ids != sorted(set(ids)):
            raise Refused("The clients in the message are out of order or named twice.")
        packet = cls(**head, ids=tuple(ids), body=body)
        if packet.written() != data:
            raise Refused("The head of the message is not written in the one way that is allowed.")
        return packet

    def expect(self, kind: Kind, direction: Direction, terms: SumTerms, nonce: str, client: str, body: int | None = None) -> None:
        """Raises: Refused: this is another message than the one waited for, or has another size (``body``, in bytes)."""
        if (self.kind, self.direction) != (kind, direction):
            raise Refused(f"The message is {self.kind} {self.direction} where {kind} {direction} is waited for.")
        if (self.run, self.round, self.nonce) != (terms.run, terms.round, nonce):
            raise Refused(f"The message belongs to another sum: run {quoted(self.run)}, round {plain(self.round)}.")
        if self.client != client:
            raise Refused(f"The message is {quoted(self.client)}'s, not {quoted(client)}'s.")
        if direction == "up" and self.ids:
            raise Refused("The answer names clients, which only questions do.")
        if body is not None and len(self.body) != body:
            raise Refused(f"The message holds {len(self.body)} bytes where {body} are waited for.")

    def expect_first(self, kind: Kind, terms: SumTerms, client: str) -> None:
        """Raises: Refused: this is no question that begins an attempt, in which no client is named yet."""
        self.expect(kind, "down", terms, self.nonce, client, 0)
        if len(self.nonce) != 2 * NONCE or not set(self.nonce) <= set("0123456789abcdef"):
            raise Refused(f"The attempt is named {quoted(self.nonce)}, not by {2 * NONCE} hexadecimal digits.")
        if self.ids:
            raise Refused("The first question of a sum names clients, which only later ones do.")


def digest(data: bytes) -> str:
    """By which a message is known again: 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def packed(integers: np.ndarray, width: int) -> bytes:
    """uint32 integers as ``width`` bytes each, the lowest first: modulo 2^(8·width)."""
    return integers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def unpacked(data: bytes, width: int) -> np.ndarray:
    """uint32 [n]: undo :func:`packed`."""
    full = np.zeros((len(data) // width, 4), np.uint8)
    full[:, :width] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return full.view("<u4").reshape(-1)


def save(head: dict[str, Any], blobs: Mapping[str, bytes]) -> bytes:
    """A state as bytes: plain JSON and named raw bytes."""
    return _joined({"state": head, "blobs": [[name, len(blob)] for name, blob in blobs.items()]}, b"".join(blobs.values()))


def load(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Undo :func:`save`.

    Raises:
        Refused: these bytes are torn, or no state.
    """
    head, body = _parted(data, "state of a secure sum")
    blobs, at = {}, 0
    try:
        for name, size in head["blobs"]:
            blobs[name] = body[at : at + size]
            at += size
        state = head["state"]
    except (KeyError, TypeError, ValueError):
        at = -1
    if at != len(body):
        raise Refused("The state of a secure sum is torn.")
    return state, blobs


def _joined(head: dict[str, Any], body: bytes) -> bytes:
    text = write_json(head)
    return struct.pack("<I", len(text)) + text + body


def _parted(data: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    if len(data) < 4:
        raise Refused(f"The {what} ends before its head.")
    (size,) = struct.unpack_from("<I", data)
    if not size <= min(TEXT_LIMIT, len(data) - 4):
        raise Refused(f"The head of the {what} claims {size} bytes, more than there are or may be.")
    return read_json(data[4 : 4 + size], what), data[4 + size :]


def _is_id(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= LONGEST and is_text(text)
