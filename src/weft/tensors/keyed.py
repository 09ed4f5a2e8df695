"""Random streams keyed by what they are for, so that no draw depends on any other draw having happened.

Every random choice in Weft comes from a generator keyed by (experiment seed, purpose, round, client id). Hence results do
not depend on pack size, on the order in which clients are trained, or on an interruption.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(seed: int, *parts: object) -> int:
    """A 63-bit integer that depends on every part and on their order.

    Parts are told apart by type as well as by text, so ``("a", 1)`` and ``("a", "1")`` differ.
    """
    h = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        text = f"{type(part).__name__}:{part}".encode()
        h.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(h.digest(), "little") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator for the stream named by ``parts`` (draw on the CPU, then move: devices differ in their streams)."""
    return torch.Generator().manual_seed(key(seed, *parts))


def numpy_generator(seed: int, *parts: object) -> np.random.Generator:
    """The NumPy counterpart of :func:`generator`, for draws over indices."""
    return np.random.default_rng(key(seed, *parts))
