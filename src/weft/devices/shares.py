"""Kinds dealt out to clients by shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weft.errors import UserError

GOLDEN = 0.618033988749895


def dealt(position: int, shares: Sequence[float]) -> int:
    """Which of several kinds the client at a position is.

    The golden ratio spreads any number of clients evenly over the shares, in an order without runs.

    Args:
        position: of the client, from 0. shares: of the kinds; they need not add up to 1.
    """
    place = ((position + 0.5) * GOLDEN) % 1.0 * math.fsum(shares)
    kind = 0
    while kind < len(shares) - 1 and place >= math.fsum(shares[: kind + 1]):
        kind += 1
    return kind


def of_text(text: str, setting: str, example: str = "a:2,b:1") -> dict[str, float]:
    """``4:2,8,16`` as kinds with shares, {"4": 2, "8": 1, "16": 1}.

    Args:
        setting: what is said to be wrong. example: of what is right.

    Raises:
        UserError: a kind is empty or there twice, or a share is no positive number.
    """
    found: dict[str, float] = {}
    for entry in text.split(","):
        kind, _, said = (part.strip() for part in entry.partition(":"))
        try:
            share = float(said) if ":" in entry else 1.0
        except ValueError:
            share = math.nan
        if not (kind and math.isfinite(share) and share > 0) or kind in found:
            raise UserError(
                f'{setting} = "{text}" cannot be dealt out: write each kind once, with a share above 0, as in {example}.'
            )
        found[kind] = share
    return found
