"""What noise in whole numbers costs, of which each client adds a part: the Rényi divergences of Skellam's distribution.

N. Agarwal, P. Kairouz, Z. Liu, "The Skellam mechanism for differentially private federated learning", NeurIPS 2021, arXiv
2110.04995, corollary 3.6 of theorem 3.5: with μ the variance of the noise in each, and two vectors of whole numbers
that are Δ₂ apart in norm and Δ₁ in the sum of absolute values, for whole numbers α > 1

    ε(α) ≤ α Δ₂²/(2μ) + min( ((2α - 1) Δ₂² + 6 Δ₁)/(4μ²), 3 Δ₁/(2μ) )

Of whole numbers Δ₁ is at most Δ₂², so that no number of coordinates is needed. Whoever adds up the vectors knows who took part:
lots hide nobody, and neighbours differ by one client whose vector is zero.
"""

from __future__ import annotations

import functools

import numpy as np

from weft.errors import UserError
from weft.privacy import accounting

ORDERS = (*range(2, 65), *(2**k for k in range(7, 13)))


def divergence(order: int, variance: float, squared: float, absolute: float) -> float:
    """The bound of corollary 3.6.

    Args:
        order: α, a whole number from 2. variance: μ. squared, absolute: Δ₂² and Δ₁.
    """
    far = ((2 * order - 1) * squared + 6 * absolute) / (4 * variance**2)
    return order * squared / (2 * variance) + min(far, 3 * absolute / (2 * variance))


def epsilon(noise: float, levels: int, times: int, delta: float) -> float:
    """ε of ``times`` sums of vectors of whole numbers whose norm is at most ``levels``.

    Args:
        noise: z, the standard deviation of the noise over ``levels``. delta: δ of (ε, δ)-differential privacy.

    Returns:
        infinity without noise, 0 of nothing.
    """
    known = accounting.plain(noise, times)
    return _epsilon(accounting.bounded(noise), int(levels), int(times), float(delta)) if known is None else known


@functools.lru_cache(maxsize=1024)
def noise_for(target: float, levels: int, times: int, delta: float) -> float:
    """The least noise z, to a thousandth, of which :func:`epsilon` is at most ``target``.

    Raises:
        UserError: no noise is enough.
    """
    found = accounting.least(lambda noise: epsilon(noise, levels, times, delta), target)
    if found is None:
        raise UserError(f"no noise gives epsilon {target:g} at delta {delta:g} over {times:,} sums: ask for a larger one.")
    return found


@functools.lru_cache(maxsize=4096)
def _epsilon(noise: float, levels: int, times: int, delta: float) -> float:
    accounting.library()
    from dp_accounting.rdp import compute_epsilon

    norm = float(levels) ** 2
    each = np.array([divergence(order, noise**2 * norm, norm, norm) for order in ORDERS])
    return float(compute_epsilon(ORDERS, times * each, delta)[0])
