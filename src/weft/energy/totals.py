"""The energy of a whole federation out of the lines of its rounds, and the words that go with it wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.words import count


def total(lines: Sequence[Mapping[str, Any]], setup: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """Sums over rounds; None if no round tells.

    Args:
        setup: lines of the head's own training.

    Returns:
        ``kwh`` net of idle, ``co2_kg`` (None if a round does not tell it), ``source``, ``idle_w`` in the mean over rounds,
        ``gross_kwh``, ``evaluation_kwh`` and ``setup_kwh`` apart and net, ``missing``: rounds that do not tell,
        ``negative``: rounds below idle.
    """
    told = [line["energy"] for line in lines if isinstance(line.get("energy"), dict)]
    if not told:
        return None
    carbon = [one.get("co2_kg") for one in told]
    return {
        "kwh": sum(one["kwh"] for one in told),
        "co2_kg": None if None in carbon else sum(carbon),
        "source": " and ".join(dict.fromkeys(one["source"] for one in told)),
        "idle_w": sum(one["idle_w"] for one in told) / len(told),
        "gross_kwh": sum(one["gross_kwh"] for one in told),
        "evaluation_kwh": sum(one.get("evaluation_kwh", 0.0) for one in told),
        "setup_kwh": sum(line["energy"]["kwh"] for line in setup if "energy" in line),
        "missing": len(lines) - len(told),
        "negative": sum(min(one["kwh"], one.get("evaluation_kwh", 0.0)) < 0 for one in told),
    }


def how(totals: Sequence[Mapping[str, Any]]) -> str:
    """Where the numbers of one or several federations come from, what was subtracted, and what they lack."""
    words = [" and ".join(dict.fromkeys(one["source"] for one in totals))]
    idle = sum(one["idle_w"] for one in totals) / len(totals)
    words.append(f"less {idle:.3g} W idle" if idle else "idle not subtracted")
    if missing := sum(one["missing"] for one in totals):
        words.append(f"without {count(missing, 'round')}")
    if negative := sum(one["negative"] for one in totals):
        words.append(f"below idle in {count(negative, 'round')}")
    return ", ".join(words)


def kind(totals: Sequence[Mapping[str, Any]]) -> str:
    """``declared``, ``measured``, or both."""
    sources = [source for one in totals for source in one["source"].split(" and ")]
    return " and ".join(sorted({source.partition(":")[0] for source in sources}))
