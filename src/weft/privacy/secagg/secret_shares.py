"""Shares of a secret: any t of them give it, and fewer say nothing about it (A. Shamir, "How to share a secret", CACM 1979).

They are taken over GF(2¹²⁸), of each half of a secret by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET = 32
"""Bytes of a secret, and of each of its shares."""

_HALF = 16


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """One share for each of ``holders``, in their order."""
    halves = [Shamir.split(threshold, holders, secret[i : i + _HALF], False) for i in (0, _HALF)]
    return [low + high for (_, low), (_, high) in zip(*halves, strict=True)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the first ``threshold`` of these shares; other bytes if one of them is wrong.

    Args:
        shares: by the place of the holder, from 0.

    Raises:
        ValueError: there are fewer.
    """
    if len(shares) < threshold:
        raise ValueError(f"{threshold} shares give the secret, {len(shares)} are there")
    used = sorted(shares.items())[:threshold]
    return b"".join(Shamir.combine([(place + 1, share[i : i + _HALF]) for place, share in used], False) for i in (0, _HALF))
