"""The time and the energy of a federation on simulated devices, out of the lines of its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def total(lines: Sequence[Mapping[str, Any]], setup: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """Of all rounds; None where nobody kept time.

    Args:
        setup: lines of the head's own training.

    Returns:
        ``seconds``, of which nobody was available in ``waited``, ``joules``, ``grams`` (None: no grid is known), ``late``: turns
        that missed the deadline, ``gone``: turns whose clients went away; ``setup_seconds``, ``setup_joules`` and ``setup_grams``
        apart.
    """
    told, before = ([line["clock"] for line in some if "clock" in line] for some in (lines, setup))
    if not told:
        return None
    return {
        "seconds": told[-1]["now"],
        "joules": sum(one["joules"] for one in told),
        "grams": _grams(told),
        "late": sum(len(one["late"]) for one in told),
        "gone": sum(len(one.get("gone", ())) for one in told),
        "waited": sum(one.get("waited", 0.0) for one in told),
        "setup_seconds": before[-1]["now"] if before else 0.0,
        "setup_joules": sum(one["joules"] for one in before),
        "setup_grams": _grams(before),
    }


def _grams(told: Sequence[Mapping[str, Any]]) -> float | None:
    known = [one["grams"] for one in told if one.get("grams") is not None]  # runs of before grids were known do not tell it
    return sum(known) if len(known) == len(told) else None


def span(seconds: float) -> str:
    """For people, to three digits: ``0.353 s``, ``12.5 min``, ``3.2 h``, ``2.1 d``."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"
