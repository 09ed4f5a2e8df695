"""What an adapter has cost since it was first trained: over the runs that each began from the one before, and for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.storage import files

COSTS = ("bytes", "seconds", "joules", "grams")
"""Of all messages, up and down; by the simulated clock; drawn by simulated devices; CO₂ of that."""
UNKNOWN: dict[str, Any] = {"runs": 0, "tasks": [], "whole": False, **dict.fromkeys(COSTS, 0)}
"""The past of an adapter that tells nothing of it."""


def of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run with all runs before it.

    Args:
        summary: with the totals of its rounds; where it began from an adapter, ``start`` has what that one tells as ``lifetime``.

    Returns:
        ``runs``; ``tasks``, a digest of each data set that was trained on, once; ``whole``: nothing is known to be missing; and
        totals of COSTS, each null where a run does not tell it.
    """
    clock = summary.get("clock") or {}
    own: dict[str, Any] = {"bytes": sum(way["wire"] for phase in summary["bytes"].values() for way in phase.values())}
    own |= {name: None if clock.get(name) is None else clock[name] + clock[f"setup_{name}"] for name in COSTS[1:]}
    start = summary.get("start")
    past = {**UNKNOWN, "whole": True} if start is None else start.get("lifetime") or UNKNOWN
    task = files.sha256(str(summary["data"]["fingerprint"]).encode())[:16]
    sums = {name: None if None in (past[name], own[name]) else past[name] + own[name] for name in COSTS}
    return {"runs": past["runs"] + 1, "tasks": sorted({*past["tasks"], task}), "whole": past["whole"], **sums}
