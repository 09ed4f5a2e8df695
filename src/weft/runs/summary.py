"""``summary.json``: what was run, on what, with what, and what came out."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from weft.communication.ledger import format_bytes
from weft.experiment import Resolved
from weft.federation.common_facts import nobody
from weft.federation.layout import named
from weft.federation.scope import Scope
from weft.runs import baselines
from weft.runs.directory import RunDirectory
from weft.runs.provenance import environment
from weft.runs.stage import sent
from weft.storage import files
from weft.tensors.integers import Bounded, packed_size, sides
from weft.words import count

if TYPE_CHECKING:
    from weft.engines.engine import Engine
    from weft.runs.prepare import Material
    from weft.runs.stage import FinishedStage


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
        "planned": baselines.planned(resolved.experiment),
        "method": {
            "slug": info.slug,
            "title": info.title,
            "paper": info.paper,
            "arxiv": info.arxiv,
            "evidence": info.evidence,
            "views": list(resolved.method.views),
            "object": resolved.given,
            "rule": resolved.experiment.rule,
            "server_step": resolved.experiment.server_step,
        },
        "data": material.data,
        "backbone": {
            "name": backbone.name,
            "hub_id": backbone.hub_id,
            "sha256": backbone.weight_hash,
            "parameters": backbone.parameters,
            "head": bool(backbone.heads),
            "precision": backbone.precision,
            "notes": list(backbone.notes),
        },
        "environment": environment(backbone.device.type),
        "seconds": {"loading": time.time() - when},
    }


def memory(engine: Engine) -> str:
    """The estimate, before the first pass."""
    guess, k = engine.turns.capacity.guess, engine.turns.capacity.k
    return (
        f"memory: about {format_bytes(guess.total(k))} for the backbone and a pack of {count(k, 'client')}; "
        f"{format_bytes(guess.available)} are free."
    )


def uploads(engine: Engine) -> str:
    """What a client sends in a round, if everything it may send has moved."""
    server, _ = engine.setup.federations[0]
    each = engine.setup.bench.dtype.itemsize
    known = {n: i.numel * each for n, i, scope in named(server.adaptation, engine.setup.bench.backbone) if Scope.UP in scope}
    beside = engine.setup.method.uploads(server, nobody(server.clients))
    for name, shape in beside.items():
        full = [side for side in sides(shape) if side is not None]
        if len(full) == len(sides(shape)):
            known[name] = packed_size(full, shape.below) if isinstance(shape, Bounded) else math.prod(full) * each
    up = sum(known.values())
    tensors, free = count(len(known), "tensor"), len(beside.keys() - known.keys())
    more = f", and {free} whose size varies" if free else ""
    said = f"bytes: a client sends up to {format_bytes(up)} a round before the codec, of {tensors}{more}."
    return f"{said} {_in_steps(engine)}" if "split" in engine.setup.method.info.needs else said


def _in_steps(engine: Engine) -> str:
    """What travels in a step of split learning, beside what a round of federated averaging would take."""
    server, bench, rows = engine.setup.federations[0][0], engine.setup.bench, engine.setup.method.batch
    width = int(bench.table.lengths.max(initial=1))
    step = 2 * rows * width * bench.backbone.d * bench.backbone.dtype.itemsize
    whole = sum(i.numel for _, i, _ in named(server.adaptation, bench.backbone)) * bench.dtype.itemsize
    return (
        f"Each of its steps takes up to {format_bytes(step)} more, and as much comes back, for {rows} rows of {width} tokens; "
        f"federated averaging of all weights would take {format_bytes(whole)} a round each way."
    )


def total_bytes(main: FinishedStage, setup: FinishedStage | None) -> dict[str, Any]:
    """Bytes of the whole run by phase; those of a head's own training are part of set-up."""
    if not main.travels:
        return {}
    found = sent(main.ledger)
    if setup is None:
        return found
    for phase, ways in sent(setup.ledger).items():
        for way, some in ways.items():
            mine = found.setdefault(phase, {}).setdefault(way, {"messages": 0, "payload": 0, "wire": 0, "parts": {}})
            for kind in ("messages", "payload", "wire"):
                mine[kind] += some[kind]
            for part, size in some["parts"].items():
                mine["parts"][part] = mine["parts"].get(part, 0) + size
    return found
