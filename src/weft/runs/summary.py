"""``summary.json``: what was run, on what, with what, and what came out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weft.communication.ledger import format_bytes
from weft.experiment import Experiment, Resolved
from weft.federation import files
from weft.runs.directory import RunDirectory
from weft.runs.environment import environment
from weft.runs.stage import sent

if TYPE_CHECKING:
    from weft.engines.simulation import Simulation
    from weft.runs.prepare import Material
    from weft.runs.stage import Played


def begun(directory: RunDirectory, resolved: Resolved, material: Material, when: float) -> dict[str, Any]:
    """What can be said before the first round."""
    info, backbone = resolved.method.info, material.backbone
    settings = {n: {"value": v, "origin": resolved.origin[n]} for n, v in resolved.experiment.flat().items()}
    return {
        "format": files.FORMAT,
        "finished": False,
        "name": directory.root.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
        "settings": settings,
        "method": {
            "slug": info.slug,
            "title": info.title,
            "paper": info.paper,
            "arxiv": info.arxiv,
            "evidence": info.evidence,
            "views": list(info.views),
            "object": resolved.given,
        },
        "data": material.data,
        "backbone": {
            "name": backbone.name,
            "hub_id": backbone.hub_id,
            "sha256": backbone.weight_hash,
            "parameters": backbone.parameters,
            "precision": str(backbone.dtype).removeprefix("torch."),
            "notes": list(backbone.notes),
        },
        "environment": environment(backbone.device.type),
        "seconds": {"loading": time.time() - when},
    }


def origins(x: Experiment, origin: Mapping[str, str]) -> list[str]:
    """Every setting with its origin, a line for each origin."""
    titles = {"user": "yours", "recipe": f"recipe for {x.model} on {x.data}", "default": "defaults"}
    flat = x.flat()
    lines = []
    for name, title in titles.items():
        here = [f"{n} {_shown(v)}" for n, v in flat.items() if origin[n] == name and v is not None and v != []]
        if here:
            lines.append(f"settings ({title}): {', '.join(here)}")
    return lines


def memory(simulation: Simulation) -> str:
    """The estimate, before the first pass."""
    guess, k = simulation.guess, simulation.k
    return (
        f"memory: about {format_bytes(guess.total(k))} for the backbone and a pack of {k} client{'s' if k > 1 else ''}; "
        f"{format_bytes(guess.available)} are free."
    )


def total_bytes(main: Played, setup: Played | None) -> dict[str, Any]:
    """Bytes of the whole run by phase; those of a head's own training are part of set-up."""
    found = sent(main.ledger)
    if setup is None:
        return found
    for phase, ways in sent(setup.ledger).items():
        for way, some in ways.items():
            mine = found.setdefault(phase, {}).setdefault(way, {"messages": 0, "payload": 0, "wire": 0, "parts": {}})
            for count in ("messages", "payload", "wire"):
                mine[count] += some[count]
            for part, size in some["parts"].items():
                mine["parts"][part] = mine["parts"].get(part, 0) + size
    return found


def plain(report: Any) -> dict[str, Any]:
    """A report of :mod:`weft.export` as JSON."""
    return {n: v if isinstance(v, (int, float, bool, str, list, dict, type(None))) else str(v) for n, v in _fields(report)}


def _fields(report: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(report, f.name)) for f in dataclasses.fields(report)]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
