"""Random directions that nobody sends: entries of N(0, 1), drawn anew from a number wherever they are needed.

A direction has the same bits on every machine. ``torch.randn`` does not promise that: its stream depends on the device, and on a
CPU on the vector instructions that it finds. Here 16 bits of a counted stream choose one of 65,536 equally likely values, the
quantiles of N(0, 1) at the middles of as many intervals, so that no transcendental function is computed on the way: mean 0,
variance 1, kurtosis 2.999, and no entry beyond 4.33. Sums are taken in float64, one product and one addition at a time, in one
order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from weft.tensors.keyed import key

CHUNK = 2**16
"""Entries of one stream: they stay in a core's cache while directions are summed, and chunks are drawn side by side."""

LEVELS = 2**16


@functools.cache
def levels() -> np.ndarray:
    """float32 [65536]: the values that an entry can have, ascending.

    They are multiples of 2⁻²⁰, which the last bits of the quantile function do not reach.
    """
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    found = torch.special.ndtri(middles)
    found = (found / found.square().mean().sqrt() * 2**20).round() / 2**20
    return found.to(torch.float32).numpy()


def direction(seed: int, number: int, size: int) -> np.ndarray:
    """float32 [size]: the direction of this number. A shorter one is its beginning."""
    found = np.empty(size, np.float32)

    def draw(chunk: int) -> None:
        found[_within(chunk)] = _drawn(seed, number, chunk, len(found[_within(chunk)]))

    _each(size, draw)
    return found


def combination(seed: int, weights: np.ndarray, size: int, kind: type[np.floating[Any]] = np.float64) -> np.ndarray:
    """[size]: Σ_j weights[j] · direction j, in the order of j; directions of weight 0 are not drawn.

    Args:
        weights: float64 [K]. kind: that the sums, which are taken in float64, are kept as.
    """
    total = np.empty(size, kind)
    chosen = [(int(j), float(weights[j])) for j in weights.nonzero()[0]]

    def add(chunk: int) -> None:
        part = np.zeros(len(total[_within(chunk)]))
        term = np.empty_like(part)
        for j, weight in chosen:
            np.multiply(_drawn(seed, j, chunk, len(part)), weight, out=term, dtype=np.float64)
            np.add(part, term, out=part)
        total[_within(chunk)] = part

    _each(size, add)
    return total


def _drawn(seed: int, number: int, chunk: int, size: int) -> np.ndarray:
    """float32 [size]: the beginning of one chunk of a direction."""
    words = np.random.PCG64(key(seed, "direction", number, chunk)).random_raw(-(-size // 4))
    places = words.astype("<u8", copy=False).view("<u2")[:size]
    found: np.ndarray = levels().take(places)
    return found


def _within(chunk: int) -> slice:
    return slice(chunk * CHUNK, (chunk + 1) * CHUNK)


def _each(size: int, work: Callable[[int], None]) -> None:
    """Work through all chunks on as many threads as PyTorch has; nothing depends on how many."""
    chunks, threads = range(-(-size // CHUNK)), torch.get_num_threads()
    if len(chunks) < 2 or threads < 2:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
        list(pool.map(work, chunks))
