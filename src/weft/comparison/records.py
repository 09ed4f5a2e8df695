"""The numbers of a cell, out of the summary of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.comparison.cells import Done
from weft.engines.evaluation import pick
from weft.federation.info import common
from weft.runs.result import DIAGNOSTICS
from weft.words import shown

SCORES = ("common", "own", "worst")
"""Scores of a record: on all test rows, in the mean over clients on their own, and of the worst client on its own."""

ENERGY = "energy_"
"""Before the names of :func:`weft.energy.total`, in records of runs that tell their energy."""

CLOCK = "clock_"
"""Before the names of :func:`weft.devices.total`, in records of runs on simulated devices."""


def record(done: Done) -> dict[str, Any]:
    """One flat row: the cell, its scores, its costs, and what it was made with.

    ``common`` is of the one model for all on the global test set, and of a method whose clients have models of their own the same
    rows, each put to one of them. ``own`` and ``worst`` are of clients' own models where there are any, on their own test rows.
    """
    cell, summary = done.cell, done.summary
    found: dict[str, Any] = {"method": cell.row, **cell.at, "seed": cell.seed, "tuned": None, "reason": done.reason}
    if cell.tuned is not None:
        found["tuned"] = f"{cell.tuned[0]}={shown(cell.tuned[1])}"
    found |= {"run": done.place.name, "finished": summary is not None}
    if summary is None:
        return found | dict.fromkeys(("metric", *SCORES, "validation"))
    metric = (summary["headline"] or {}).get("metric", "")
    views = summary["method"]["views"]
    mine = next((v for v in views if not common(v)), views[0])
    whole = next((v for v in views if common(v)), None)
    work, drawn, clock = (summary.get(name) or {} for name in ("work", "energy", "clock"))
    return found | {
        "metric": metric,
        "common": _pooled(summary, metric, whole or views[0], "global test" if whole else "common test"),
        "own": _value(summary, metric, mine, "own test", "mean over clients"),
        "worst": _value(summary, metric, mine, "own test", "worst client"),
        "validation": _pooled(summary, metric, views[0], "validation"),
        "rounds": summary["rounds"],
        "steps": work.get("steps"),
        "examples": work.get("examples"),
        "bytes_up": bytes_of(summary, "up"),
        "bytes_down": bytes_of(summary, "down"),
        "seconds": summary["seconds"]["training"],
        **{f"{ENERGY}{name}": value for name, value in drawn.items()},
        **{f"{CLOCK}{name}": value for name, value in clock.items()},
        **{name: (summary.get(name) or {}).get("mean") for name in DIAGNOSTICS},
        "memory": summary.get("memory"),
        "start_head": summary["settings"]["start_head"]["value"],
        "data": summary["data"]["fingerprint"],
        "weights": summary["backbone"]["sha256"],
        "commit": summary["environment"]["commit"],
        "version": summary["environment"]["versions"]["weft"],
        "device": summary["environment"]["device"],
        "platform": summary["environment"]["platform"],
    }


def bytes_of(summary: Mapping[str, Any], way: str) -> float | None:
    """Of a client that takes part in a round, in the mean over all, with headers; None where nothing travels."""
    sent = summary["bytes"].get("train", {}).get(way)
    return sent["wire"] / sent["messages"] if sent and sent["messages"] else None


def _pooled(summary: Mapping[str, Any], metric: str, view: str, people: str) -> float | None:
    """Over rows, each put to the one model or to one of the clients'."""
    scores = (_value(summary, metric, view, people, how) for how in ("pooled", "pooled over clients' models"))
    return next((s for s in scores if s is not None), None)


def _value(summary: Mapping[str, Any], metric: str, view: str, people: str, pooling: str) -> float | None:
    found = pick(summary["evaluations"], view=view, people=people, metric=metric, pooling=pooling)
    return None if found is None else found.get("value")
