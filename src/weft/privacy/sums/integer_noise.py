"""Noise in whole numbers, of which each client of a secure sum adds a part: the Skellam distribution.

It is the difference of two Poisson numbers, and sums of it are of it again, so that the parts of m clients are exactly the noise
of m times their variance (N. Agarwal, P. Kairouz, Z. Liu, "The Skellam mechanism for differentially private federated learning",
NeurIPS 2021, arXiv 2110.04995). Clients that drop out take their parts along: if ``least`` of them may remain, each adds
⌈variance / least⌉.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from weft.privacy.secret import Secret

LARGEST = 1 << 32
"""That a variance may be: tables of a million entries."""

_PRECISION = 160
_WORD = 64


def skellam(secret: Secret, variance: int, n: int) -> np.ndarray:
    """int64 [n], of mean 0.

    Poisson numbers are looked up in a table by 64 secret bits each, and by 64 more where those are a threshold's first 64. No
    float takes part; the table is of integers, and a number's distribution is off by some 21·σ·2⁻¹²⁸ in total variation: all of
    10⁹ numbers with σ = 2¹⁶ by 10⁻²³ or less, far below any δ.

    Raises:
        ValueError: the variance is negative or too large.
    """
    if not 0 <= variance <= LARGEST:
        raise ValueError(f"a variance is from 0 to {LARGEST}, not {variance}")
    lowest, thresholds, rests = _poisson(variance)

    def drawn() -> np.ndarray:
        words = np.frombuffer(secret.bytes(8 * n), "<u8")
        below, most = (np.searchsorted(thresholds, words, side=side) for side in ("left", "right"))
        for i in np.flatnonzero(below != most):  # a chance of 2⁻⁶⁴ for each threshold
            more = int.from_bytes(secret.bytes(8), "little")
            below[i] += sum(rest <= more for rest in rests[below[i] : most[i]])
        return lowest + below

    return (drawn() - drawn()).astype(np.int64)


@lru_cache(maxsize=4)
def _poisson(twice: int) -> tuple[int, np.ndarray, list[int]]:
    """Of a Poisson number with mean ``twice`` / 2: the lowest that is ever drawn, and how many of 2¹²⁸ words lie below each next
    one, the first 64 bits of it and the others.

    From its mode on, each probability is the one before times mean / k, in integers of which the mode has 2¹⁶⁰.
    """
    mode = twice // 2
    up, down = [1 << _PRECISION], []
    while up[-1]:
        up.append(up[-1] * twice // (2 * (mode + len(up))))
    at = 1 << _PRECISION
    for k in range(mode, 0, -1):
        at = at * 2 * k // twice
        if not at:
            break
        down.append(at)
    weights = down[::-1] + up[:-1]
    whole, below, thresholds = sum(weights), 0, []
    for weight in weights[:-1]:
        below += weight
        thresholds.append((below << 2 * _WORD) // whole)
    # Values in the far tails have no word at all: their thresholds may be 2¹²⁸, which is beyond all words
    words = [t for t in thresholds if t >> 2 * _WORD == 0]
    low = (1 << _WORD) - 1
    return mode - len(down), np.array([t >> _WORD for t in words], np.uint64), [t & low for t in words]
