"""What two clients have in common: a key that nobody else knows, the mask that follows from it, and sealed shares.

Keys are agreed on by X25519 (RFC 7748) and derived by HKDF-SHA256 (RFC 5869) from what binds them: purpose, run, round, attempt,
all who take part, both ids and all public keys of both, so that no seal opens where one of these was changed on its way. Masks
are the keystream of AES-256 in counter mode, as uint32; seals are AES-256-GCM.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weft.communication.strict import Refused, quoted, write_json
from weft.privacy.secagg.secret_shares import SECRET
from weft.privacy.secret import Secret

KEY = 32
"""Bytes of a private or public key of X25519, of a derived key, and of a seed."""

PUBLIC = 2 * KEY
"""Bytes of a client's public keys: the one for masks, then the one for seals."""

SHARES = 2 * SECRET
"""Bytes under a seal: the share of the seed of a client's own mask, then that of its private key for masks."""

_NONCE, _TAG = 12, 16
SEALED = _NONCE + SHARES + _TAG
"""Bytes of a seal."""


@dataclass(frozen=True)
class Attempt:
    """What keys of one attempt at one sum are bound to: neighbours who were told of different clients have no key in common.

    Attributes:
        run, round, nonce: of the attempt. ids: of all who have told keys, sorted.
    """

    run: str
    round: int
    nonce: str
    ids: tuple[str, ...]

    def info(self, purpose: str, *people: tuple[str, bytes]) -> bytes:
        """Of a key for this purpose between people, each an id with public keys: other bytes for whatever differs."""
        named = [[client, public.hex()] for client, public in people]
        among = hashlib.sha256(write_json({"ids": self.ids})).hexdigest()
        attempt = {"run": self.run, "round": self.round, "nonce": self.nonce, "among": among}
        return write_json({"weft secagg": purpose, "people": named, **attempt})

    def own_mask(self, seed: bytes, client: str, length: int) -> np.ndarray:
        """uint32 [length]: what a client adds that its neighbours' shares take off again if it stays."""
        return _stream(_derived(seed, self.info("own mask", (client, b""))), length)

    def mask(self, private: bytes, mine: tuple[str, bytes], other: tuple[str, bytes], length: int) -> np.ndarray:
        """uint32 [length]: what ``mine`` adds on account of ``other``, who adds its negative. Either's private key gives it.

        Raises:
            Refused: the other's public key is a point of low order.
        """
        people = sorted((mine, other))
        stream = _stream(_derived(_exchanged(private, other[1][:KEY], other[0]), self.info("mask", *people)), length)
        return stream if people[0] == mine else -stream  # modulo 2^32, as unsigned integers are

    def seal(self, shares: bytes, private: bytes, mine: tuple[str, bytes], other: tuple[str, bytes]) -> bytes:
        """Shares that ``other`` alone can read. Raises as :meth:`mask`."""
        info = self.info("shares", mine, other)  # whose they are, then whom they are for
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(_derived(_exchanged(private, other[1][KEY:], other[0]), info)).encrypt(nonce, shares, info)

    def unseal(self, sealed: bytes, private: bytes, mine: tuple[str, bytes], other: tuple[str, bytes]) -> bytes:
        """What ``other`` has sealed for ``mine``.

        Raises:
            Refused: it is not what they have sealed, or not for this attempt, or a public key was changed on its way.
        """
        info = self.info("shares", other, mine)
        key = _derived(_exchanged(private, other[1][KEY:], other[0]), info)
        try:
            return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], info)
        except InvalidTag:
            raise Refused(f"The shares of {quoted(other[0])} don't open: they or keys were changed on their way.") from None


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_public(keys: bytes, client: str) -> None:
    """Raises: Refused: one of a client's public keys is a point of low order, with which every agreement gives zeros."""
    for key in (keys[:KEY], keys[KEY:]):
        _exchanged(os.urandom(KEY), key, client)


def _exchanged(private: bytes, public: bytes, client: str) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise Refused(f"A public key of {quoted(client)} is a point of low order, which hides nothing.") from None


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY, None, info).derive(secret)


def _stream(key: bytes, length: int) -> np.ndarray:
    return np.frombuffer(Secret(key).bytes(4 * length), "<u4")
