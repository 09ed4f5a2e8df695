"""The numbers of a run, from the lines of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft import devices, energy
from weft.engines.evaluation import pick
from weft.errors import UserError
from weft.tasks.task import goodness


def headline(line: dict[str, Any]) -> dict[str, Any] | None:
    """The number that stands for a round: the task's first metric of the method's first view, on the global test set if that view
    is scored there, else on clients' own test rows pooled.
    """
    evaluations = line.get("evaluations", [])
    if not evaluations:
        return None
    view, metric = evaluations[0]["view"], evaluations[0]["metric"]
    for people in ("global test", "own test"):
        for e in evaluations:
            if (e["view"], e["people"], e["metric"]) == (view, people, metric):
                return {"round": line["round"]} | e
    return None


def metrics(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """See :attr:`Run.metrics`."""
    line = next((n for n in reversed(lines) if n.get("evaluations")), None)
    top = headline(line) if line else None
    if line is None or top is None:
        return {}
    common = {"view": top["view"], "people": top["people"], "pooling": top["pooling"]}
    own = {"view": top["view"], "people": "own test", "metric": top["metric"]}
    mine = [e["metric"] for e in line["evaluations"] if all(e[name] == value for name, value in common.items())]
    wanted: dict[str, dict[str, str]] = {name: common | {"metric": name} for name in mine} | {
        "mean_client": own | {"pooling": "mean over clients"},
        "worst_client": own | {"pooling": "worst client"},
        "new_clients": common | {"people": "new clients", "metric": top["metric"]},
    }
    further = [e for e in line["evaluations"] if (e["view"], e["metric"]) == (top["view"], top["metric"])]
    wanted |= {e["people"].replace(" ", "_"): {**own, "people": e["people"]} for e in further if e["people"] not in USUAL}
    found = {name: pick(line["evaluations"], **kind) for name, kind in wanted.items()}
    return {name: e["value"] for name, e in found.items() if e is not None and e["value"] is not None}


def flat(line: dict[str, Any]) -> list[dict[str, Any]]:
    """See :meth:`Run.records`."""
    evaluations = line.get("evaluations", [])
    phases = line.get("bytes", {})
    rows = []
    for view in dict.fromkeys(e["view"] for e in evaluations) or [None]:
        mine = line | {"evaluations": [e for e in evaluations if e["view"] == view]}
        top, numbers = headline(mine) or {}, metrics([mine])
        val = {"view": view, "people": "validation", "metric": top.get("metric", ""), "pooling": top.get("pooling", "")}
        validation = pick(mine["evaluations"], **val)
        rows.append(
            {"round": line["round"] + 1, "view": view}
            | {name: numbers.get(name) for name in dict.fromkeys((*METRICS, *numbers))}
            | {"low": top.get("low"), "high": top.get("high"), "validation": validation["value"] if validation else None}
            | {"training_loss": line.get("loss")}
            | {name: line.get(name) for name in (*DIAGNOSTICS, "memory")}
            | {"seconds": line.get("seconds", {}).get("training")}
            | _energy(line)
            | {f"clock_{name}": line["clock"][name] for name in CLOCK if "clock" in line}
            | {f"bytes_{way}": sum(p[way]["wire"] for p in phases.values()) if phases else None for way in ("down", "up")}
        )
    return rows


USUAL = ("global test", "common test", "validation", "own test", "new clients")
"""Whose rows every run may be scored on; others are further test sets."""

METRICS = ("accuracy", "macro_f1", "loss", "mean_client", "worst_client", "new_clients")
"""Names of :attr:`Run.metrics` where nothing else is scored."""


def best_by_validation(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The headline of the round with the best validation score (the earliest of equals). Test rows have no say in it.

    Rounds are compared by the metric of the last of them: where no text was generated, a headline can be another.
    """
    found: list[dict[str, Any]] = []
    for line in lines:
        top = headline(line)
        if top is None:
            continue
        kind = {"view": top["view"], "people": "validation", "metric": top["metric"], "pooling": top["pooling"]}
        score = pick(line["evaluations"], **kind)
        if score is not None and score["value"] is not None:
            found.append(top | {"validation": score["value"]})
    alike = [one for one in found if one["metric"] == found[-1]["metric"]]
    return max(alike, key=lambda one: goodness(one["metric"], one["validation"]), default=None)


DIAGNOSTICS = ("aggregation_error", "drift", "effective_rank", "density")
"""Numbers that a round's updates have beside their scores, where they mean something."""


def last_and_mean(lines: Sequence[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Of the last round and in the mean over those that have such a number; None if none has."""
    found = [float(line[name]) for line in lines if line.get(name) is not None]
    return {"last": found[-1], "mean": sum(found) / len(found)} if found else None


CLOCK = ("now", "joules", "grams")
"""Numbers of a round on simulated devices: seconds at its end, what it drew, and the carbon of that."""


def _energy(line: dict[str, Any]) -> dict[str, Any]:
    """Of a round, with where it comes from."""
    told = line.get("energy") or {}
    return {f"energy_{name}": told.get(name) for name in ("kwh", "co2_kg", "source")}


def _work(lines: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Of all rounds: steps, examples, and operations where they are counted; None where they were taken elsewhere."""
    found = [line["work"] for line in lines if "work" in line]
    return {name: sum(one.get(name, 0) for one in found) for name in found[0]} if found else None


def scores(lines: Sequence[dict[str, Any]], setup: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What ``summary.json`` says of a federation's numbers.

    Args:
        setup: lines of the head's own training.

    Raises:
        UserError: no round was played.
    """
    if not lines:
        raise UserError("no round was played, so there is nothing to score: the method's plan ends before it begins.")
    last = lines[-1]  # always scored, unless there are no test rows at all
    return {
        "rounds": len(lines),
        "headline": headline(last),
        "best_by_validation": best_by_validation(lines),
        **{name: last_and_mean(lines, name) for name in DIAGNOSTICS},
        "memory": max((line["memory"] for line in lines if line.get("memory") is not None), default=None),
        "metrics": metrics(lines),
        "evaluations": last.get("evaluations", []),
        "work": _work(lines),
        "energy": energy.total(lines, setup),
        **({} if (clock := devices.total(lines, setup)) is None else {"clock": clock}),
        "seconds": {
            "training": sum(line["seconds"]["training"] for line in lines),
            "evaluation": sum(line["seconds"].get("evaluation", 0.0) for line in lines),
        },
    }
