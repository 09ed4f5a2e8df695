"""Random numbers that hide something: a keystream of AES-256 in counter mode, under a key that nobody else knows.

The run's seed is known to every site, so noise from it hides nothing and batches from it amplify nothing. Such draws come from
a :class:`Secret` instead. ``Secret.of`` is the exception: a stream that anybody who knows its keys can repeat, for tests and for
simulations that must give the same numbers again.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft import distribution
from weft.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

KEY = 32
"""Bytes of a key: AES-256."""

DRAWS = 4
"""Normal numbers of which one is made."""


class Secret:
    """A stream of random numbers under a key of 32 bytes: equal keys give equal numbers in equal order.

    Attributes:
        key: whoever has it knows all numbers.

    Raises:
        ValueError: the key has another length.
        UserError: the package ``cryptography`` is missing.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY:
            raise ValueError(f"a key has {KEY} bytes, not {len(key)}")
        self.key = key
        self._stream = _keystream(key)

    @classmethod
    def fresh(cls) -> Secret:
        """Under a key from the operating system, which nothing else gives again."""
        return cls(os.urandom(KEY))

    @classmethod
    def of(cls, *keys: object) -> Secret:
        """Under a key that follows from ``keys`` by SHA-256: reproducible, and no secret to whoever can guess them.

        Parts are told apart by type as well as by text, so ``(1, 2)``, ``(12,)`` and ``("1", 2)`` give three streams.
        """
        h = hashlib.sha256()
        for part in keys:
            text = f"{type(part).__name__}:{part}".encode()
            h.update(len(text).to_bytes(8, "little") + text)
        return cls(h.digest())

    def bytes(self, n: int) -> bytes:
        """The next ``n`` bytes of the stream."""
        return self._stream.update(bytes(n))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """float64 in [0, 1): multiples of 2⁻⁵³, each as likely."""
        return torch.from_numpy(self._uniform(math.prod(shape))).reshape(tuple(shape))

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Standard normal numbers.

        Each is the sum of four by Box and Muller, halved (N. Holohan and S. Braghin, "Secure random sampling in differential
        privacy", ESORICS 2021, arXiv 2107.10138): which floats a single one can be tells what it was added to (I. Mironov, CCS
        2012), and of a sum of four nobody can try out the parts.
        """
        n = math.prod(shape)
        total = np.zeros(n)
        for _ in range(DRAWS):
            radius = np.sqrt(-2 * np.log1p(-self._uniform(n)))  # of 1 - u, which is never 0
            total += radius * np.cos(2 * np.pi * self._uniform(n))
        return torch.from_numpy(total / math.sqrt(DRAWS)).reshape(tuple(shape)).to(dtype)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        """bool [n], each True with probability ``q``, independent of the others: a Poisson sample of ``n`` rows or clients."""
        return self._uniform(n) < q

    def _uniform(self, n: int) -> np.ndarray:
        return (np.frombuffer(self.bytes(8 * n), "<u8") >> np.uint64(11)) * 2.0**-53


def _keystream(key: bytes) -> CipherContext:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise UserError(f"secret random numbers need the package cryptography: {distribution.install('privacy')}.") from None
    # A counter from zero: a key is for one stream, which is begun once
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
