"""Runs for pages: copies of one run's folder under other methods and seeds, with the numbers that only some runs have."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import weft

EXTRAS = ("spread", "drift", "effective_rank", "memory", "energy", "counts")
"""Numbers that a run may lack."""
BETWEEN = {"first quartile": 0.3, "median client": 0.5, "third quartile": 0.7, "best client": 1.0}
"""Pooling → place between the worst client and one above the mean."""


def like(run: weft.Run, to: Path, slug: str, seed: int, rounds: int, extras: Sequence[str] = EXTRAS, **data: Any) -> weft.Run:
    """A folder like that of ``run``, of another method and seed and with so many rounds.

    Args:
        extras: of EXTRAS, the numbers that it has. data: other values for the summary's ``data``.
    """
    summary = copy.deepcopy(run.summary)
    summary["name"] = to.name
    summary["method"] |= weft_method(slug)
    summary["settings"]["method"]["value"] = slug
    summary["settings"]["seed"] = {"value": seed, "origin": "user"}
    summary["data"] |= {"counts": None} | data
    if "counts" in extras and "counts" not in data:
        clients, classes = [f"c{i}" for i in range(6)], summary["data"]["classes"]
        rows = [[(7 * i + 3 * j + seed) % 11 * 4 for j in range(len(classes))] for i in range(len(clients))]
        summary["data"]["counts"] = {"clients": clients, "classes": classes, "rows": rows}
    lines = [_line(run.rounds[-1], r, len(slug) + seed, extras) for r in range(rounds)]
    summary["rounds"] = rounds
    to.mkdir(parents=True)
    (to / "summary.json").write_text(json.dumps(summary))
    (to / "experiment.toml").write_bytes((run.folder / "experiment.toml").read_bytes())
    (to / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = weft.load_run(to)
    made.rounds = lines  # without a checkpoint that vouches for them
    return made


def weft_method(slug: str) -> dict[str, Any]:
    """What a summary says of a method."""
    from weft.methods import registry

    info = registry.infos()[slug]
    return {"slug": slug, "title": info.title, "paper": info.paper, "arxiv": info.arxiv, "views": list(info.views)}


def _line(like: dict[str, Any], r: int, shift: int, extras: Sequence[str]) -> dict[str, Any]:
    line = copy.deepcopy(like)
    grown = 1 - 0.8 ** (r + 1) * (0.7 + 0.02 * (shift % 9))
    line |= {"round": r, "loss": 2.0 * 0.85**r + 0.01 * (shift % 7), "aggregation_error": 0.1 + 0.01 * (shift % 5)}
    line["seconds"] = {"training": 1.0 + 0.1 * (shift % 4), "evaluation": 0.4}
    top = line["evaluations"][0]
    spread = []
    line["evaluations"] = [e for e in line["evaluations"] if e["pooling"] not in BETWEEN]
    for e in line["evaluations"]:
        e["value"] = grown - (0.15 if e["pooling"] == "worst client" else 0.0)
    if "spread" in extras:
        worst = next(e for e in line["evaluations"] if e["pooling"] == "worst client" and e["people"] == "own test")
        spread = [worst | {"pooling": pooling, "value": grown - 0.15 + 0.2 * at} for pooling, at in BETWEEN.items()]
    line["evaluations"] += [e for e in spread if e["metric"] == top["metric"]]
    for name, value in {"drift": 0.5 + 0.02 * r, "effective_rank": 6.0 - 0.1 * r, "memory": 1_500_000_000 + 1000 * r}.items():
        line.pop(name, None)
        if name in extras:
            line[name] = value
    if "energy" in extras:
        line["energy"] = {"kwh": 0.001, "co2_kg": 0.0004, "source": "declared: 65 W", "idle_w": 5.0, "gross_kwh": 0.0011}
    return line
