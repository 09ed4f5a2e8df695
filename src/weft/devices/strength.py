"""Sizes that a method deals out to its clients, for devices: the stronger one is, the more it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

STRENGTH = "strength"
"""The fact of a client whose device is known: what it has of the largest memory or speed in the federation, whichever is less."""
POSITIONS = 1000
"""At which a method is asked for its sizes: those of which it has fewer than one in a thousand are overlooked."""


def sized(profile: Callable[[int], dict[str, Any]]) -> Callable[[int, Mapping[str, Any]], dict[str, Any]]:
    """What the client at a position has as facts, from a method's ``profile`` and from what is known of it already.

    Where its strength is known, sizes are not dealt by position: it has the largest of those which the method deals that is no
    more than its strength's share of the largest of all, and the smallest if there is none. Otherwise, or where what is dealt are
    no numbers, it has what the method deals to its position. What is known of it already stays.
    """
    sizes: list[dict[str, Any]] = []

    def at(position: int, known: Mapping[str, Any]) -> dict[str, Any]:
        dealt = profile(position)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in dealt.values())
        if not dealt or not numbers or STRENGTH not in known:
            return dealt | dict(known)
        if not sizes:
            sizes.extend(_distinct(profile))
        return _of(sizes, known[STRENGTH]) | dict(known)

    return at


def _distinct(profile: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Sizes that are dealt, from the smallest to the largest: by their facts as shares of the largest, added up."""
    kinds = {tuple(sorted(profile(position).items())) for position in range(POSITIONS)}
    most = _most([dict(kind) for kind in kinds])
    return sorted(map(dict, kinds), key=lambda kind: (math.fsum(v / most[n] for n, v in kind.items()), sorted(kind.items())))


def _most(kinds: list[dict[str, Any]]) -> dict[str, float]:
    return {name: max(kind[name] for kind in kinds) or 1.0 for name in kinds[0]}


def _of(sizes: list[dict[str, Any]], strength: float) -> dict[str, Any]:
    most = _most(sizes)
    fitting = [kind for kind in sizes if all(v <= strength * most[n] * (1 + 1e-9) for n, v in kind.items())]
    return dict((fitting or sizes[:1])[-1])
