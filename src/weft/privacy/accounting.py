"""What noise costs: ε of a composition, and the noise that a given ε takes. ``dp-accounting`` reckons, we say what of.

A contribution is a row's gradient or a client's update; neighbours differ by one contribution added or left out, or set to zero
(of trees, Kairouz et al. 2021), which comes to the same for Gaussian noise.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft import distribution
from weft.errors import UserError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from weft.privacy.mechanism import Accountant

DIGITS = 3
"""Chances of being drawn are rounded up to so many digits, so that clients of about one size are reckoned once."""
MOST = 14.0
"""Noise over the norm of a contribution beyond which nobody looks for a smaller ε, as a logarithm; more counts as so much, and
less than its inverse as none, for squares of either are no numbers any more."""
TOLERANCE = 1e-3
"""Of noise that is found for an ε, from above, over the noise."""
GRID = 1e-5, 1e-3
"""Least and most of what privacy losses are rounded up to multiples of: a tenth of a usual loss, which costs ε little."""
LITTLE = 0.2
"""Noise over the norm of a contribution below which ε is by Rényi divergences: losses of 1/z² make distributions too long."""


def epsilon(noise: float, share: float, times: int, delta: float, accountant: Accountant = "pld") -> float:
    """ε of ``times`` sums of clipped contributions with Gaussian noise, each contribution drawn by itself.

    Args:
        noise: z, the standard deviation over the clipping norm. share: q in [0, 1], the chance of being drawn.
        delta: δ of (ε, δ)-differential privacy.

    Returns:
        infinity without noise, 0 of nothing.
    """
    known = plain(noise, times if share > 0 else 0)
    if known is not None:
        return known
    return _epsilon(bounded(noise), up(share), int(times), float(delta), "rdp" if noise < LITTLE else accountant)


def plain(noise: float, times: int) -> float | None:
    """ε of sums that nobody has to reckon: 0 of none, infinity of those without noise; None of all others."""
    if times <= 0:
        return 0.0
    return math.inf if noise < math.exp(-MOST) else None


def bounded(noise: float) -> float:
    """A noise that costs no less than ``noise`` and whose square is a number."""
    return min(float(noise), math.exp(MOST))


def noise_for(epsilon: float, share: float, times: int, delta: float, accountant: Accountant = "pld") -> float:
    """The least noise z, to a thousandth, of which :func:`epsilon` is at most ``epsilon``; 0 where nothing is ever drawn.

    Raises:
        UserError: no noise is enough.
    """
    if share <= 0:
        return 0.0
    return _noise_for(float(epsilon), up(share), max(int(times), 1), float(delta), accountant)


def up(share: float) -> float:
    """A share with :data:`DIGITS` digits that is no less."""
    if share >= 1:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(share)) - DIGITS + 1)
    return min(max(float(f"{math.ceil(share / unit - 1e-9) * unit:.12g}"), share), 1.0)


def levels(steps: int) -> int:
    """Nodes of a binary tree over ``steps`` leaves that one of these leaves is a part of, at most."""
    return max(steps, 1).bit_length()


@functools.lru_cache(maxsize=4096)
def _epsilon(noise: float, share: float, times: int, delta: float, accountant: Accountant) -> float:
    events = library()
    one: DpEvent = events.GaussianDpEvent(noise)
    if share < 1:
        one = events.PoissonSampledDpEvent(share, one)
    return float(_accountant(accountant, share / noise).compose(events.SelfComposedDpEvent(one, times)).get_epsilon(delta))


@functools.lru_cache(maxsize=1024)
def _noise_for(target: float, share: float, times: int, delta: float, accountant: Accountant) -> float:
    found = least(lambda noise: epsilon(noise, share, times, delta, accountant), target)
    if found is None:
        raise UserError(f"no noise gives epsilon {target:g} at delta {delta:g} over {times:,} sums: ask for a larger one.")
    return found


def least(epsilon: Callable[[float], float], target: float) -> float | None:
    """The least noise, to :data:`TOLERANCE`, of which ``epsilon`` is at most ``target``; None if none within e^:data:`MOST` is.

    Args:
        epsilon: of a noise; falling.
    """
    library()
    from scipy.optimize import brentq

    def above(log: float) -> float:
        return math.log(max(epsilon(math.exp(log)), 1e-9)) - math.log(target)

    low, high = 0.0, 0.0
    while above(high) > 0:
        high += 1.0
        if high > MOST:
            return None
    while low > -MOST and above(low) <= 0:
        low -= 1.0
    if high > low:
        high = float(brentq(above, low, high, xtol=TOLERANCE / 4))
    while above(high) > 0:  # the root is met from either side
        high += TOLERANCE / 4
    return math.exp(high)


def _accountant(kind: Accountant, loss: float) -> Any:
    """
    Args:
        loss: about that of privacy in one sum.
    """
    if kind == "rdp":
        from dp_accounting.rdp import RdpAccountant

        return RdpAccountant()
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(value_discretization_interval=min(max(loss / 10, GRID[0]), GRID[1]))


def library() -> Any:
    """The events of ``dp_accounting``.

    Raises:
        UserError: it is missing.
    """
    try:
        from dp_accounting import dp_event
    except ImportError:
        raise UserError(f"an accountant of privacy needs the package dp-accounting: {distribution.install('privacy')}.") from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of every order of Rényi's that it leaves out
    return dp_event
