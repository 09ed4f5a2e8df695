"""Vectors of whole numbers as ciphertexts that can be added up, and the key that opens them.

The ring has degree 8192 and coefficients modulo a prime of 60 bits (a second one is there for operations that are not used): by
the table of the Homomorphic Encryption Standard (M. Albrecht et al., 2018) that is more than 128 bits of security, which allow a
modulus of 218 bits. A ciphertext holds 4096 numbers.

Why sums are exact. Numbers lie in ±2³¹, and sums of them do, which is what makes whole numbers of them
(:class:`weft.privacy.sums.fixed_point.FixedPoint`). At a scale of 2²⁷ coefficients stay below 2⁵⁸, within the modulus. The noise
of a fresh ciphertext has a standard deviation of some 2⁻¹⁸ of a number, that of a sum of m grows with √m; rounding takes it off
while it is far below 1/2, for any m that a sum may have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import tenseal

from weft.communication.strict import Refused
from weft.errors import UserError

RING, PRIMES, SCALE = 8192, (60, 60), 2.0**27
SLOTS = RING // 2
"""Numbers of a ciphertext."""

SIZE = 131_217
"""Bytes of a ciphertext."""

FIXED = (slice(0, 133), slice(131_108, 131_111), slice(131_208, SIZE))
"""Of a ciphertext, what is the same in all: all but coefficients."""

CLEAR = 0.25
"""How far a number may be from a whole one when it is opened."""

LARGEST = 1 << 20
"""Bytes that are read of a key, which has some 131 thousand."""

FINGERPRINT = 16
"""Bytes by which two keys are told apart."""


class Cipher:
    """What one party can do.

    Args:
        key: None = that of nobody: ciphertexts can be checked and added up.

    Raises:
        UserError: the key is none.
    """

    def __init__(self, key: bytes | None = None):
        self._context = _new_context() if key is None else _opened(key)
        self.fingerprint = b"" if key is None else hashlib.sha256(b"weft ckks key" + key).digest()[:FINGERPRINT]

    def seal(self, numbers: np.ndarray) -> bytes:
        """Ciphertexts of whole numbers, one after another, the last one filled up with zeros.

        Args:
            numbers: int64 [n] in ±2³¹.
        """
        texts = np.zeros((ciphertexts(len(numbers)), SLOTS))
        texts.reshape(-1)[: len(numbers)] = numbers
        return b"".join(tenseal.ckks_vector(self._context, text.tolist()).serialize() for text in texts)

    def added(self, one: bytes, other: bytes) -> bytes:
        """The ciphertexts of sums.

        Raises:
            Refused: these are no ciphertexts, or not equally many.
        """
        if len(one) != len(other):
            raise Refused("The ciphertexts are not as many as those that they go to.")
        return b"".join((self._read(a) + self._read(b)).serialize() for a, b in zip(_parted(one), _parted(other), strict=True))

    def check(self, sealed: bytes) -> None:
        """Raises: Refused: these are no ciphertexts."""
        for text in _parted(sealed):
            self._read(text)

    def open(self, sealed: bytes, count: int) -> np.ndarray:
        """int64 [count]: what ciphertexts say.

        Raises:
            Refused: they are none, or not of this key, or not of whole numbers.
        """
        if len(sealed) != SIZE * ciphertexts(count):
            raise Refused(f"The sum has {len(sealed):,} bytes where ciphertexts of {count:,} numbers are waited for.")
        numbers = np.concatenate([np.array(self._read(text).decrypt()) for text in _parted(sealed)])
        whole = np.rint(numbers)
        if not (np.abs(numbers - whole) < CLEAR).all():
            raise Refused("The sum does not open with this key: sites have others.")
        return whole.astype(np.int64)[:count]

    def _read(self, text: bytes) -> tenseal.CKKSVector:
        if len(text) != SIZE or any(text[part] != _pattern()[part] for part in FIXED):
            raise Refused("It is no ciphertext of this ring, or of another version of tenseal.")
        try:
            return tenseal.ckks_vector_from(self._context, text)
        except (RuntimeError, ValueError):
            raise Refused("It is no ciphertext: it has coefficients that none has.") from None


def ciphertexts(count: int) -> int:
    """How many it takes for so many numbers."""
    return -(-count // SLOTS)


def new_key() -> bytes:
    """The secret key of a federation, with the ring: some 131 KB."""
    context = _new_context()
    parts = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    return bytes(context.serialize(save_secret_key=True, **parts))


def read_key(path: Path) -> bytes:
    """
    Raises:
        UserError: there is no such file, or it holds no key.
    """
    try:
        with path.open("rb") as file:
            key = file.read(LARGEST)
    except OSError as e:
        raise UserError(
            f"can't read the key of encrypted sums, {path} ({e.strerror}): copy it from a site that has it."
        ) from None
    try:
        Cipher(key)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    return key


def _new_context() -> tenseal.Context:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        RING,
        coeff_mod_bit_sizes=list(PRIMES),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = SCALE
    return context


def _opened(key: bytes) -> tenseal.Context:
    wrong = UserError(
        "this is no key of encrypted sums: copy it once more from a site that has it; if none has, weft keys sums makes one."
    )
    try:
        context = tenseal.context_from(key, n_threads=1)
        if not context.is_private() or context.global_scale != SCALE:
            raise wrong
        text = tenseal.ckks_vector(context, [0.0] * SLOTS).serialize()
    except (RuntimeError, ValueError):
        raise wrong from None
    if any(text[part] != _pattern()[part] for part in FIXED):
        raise wrong
    return context


@cache
def _pattern() -> bytes:
    """A ciphertext, as all others in what is fixed."""
    return bytes(tenseal.ckks_vector(_new_context(), [0.0] * SLOTS).serialize())


def _parted(sealed: bytes) -> Iterator[bytes]:
    yield from (sealed[i : i + SIZE] for i in range(0, len(sealed), SIZE))
