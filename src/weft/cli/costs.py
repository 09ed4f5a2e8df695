"""What a grid's cells will cost, before one is played: bytes counted, and seconds measured on a few steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from weft.comparison import cells as on_disk
from weft.comparison.cell_grid import BASELINES, Grid
from weft.comparison.compared_page import CELLS
from weft.engines import packing
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.experiment import Resolved
from weft.experiment.hidden import chain_of
from weft.federation.common_facts import nobody
from weft.federation.rounds import adapted, begin
from weft.runs import fitting_rows
from weft.runs.prepare import Material, copies
from weft.runs.shelf import Shelf

STEPS = 3


def costs(grid: Grid, folder: Path) -> dict[str, dict[str, Any]]:
    """Method -> payload bytes of a client and a round, ``up`` and ``down``, before any codec, and ``seconds`` of a cell.

    Seconds are those of finished cells, where there are some, else of a few steps on the first rows of the grid. What can't be
    told is None; ``reason`` says why the first cell of a row would fail where its rows are read, "" if it would not.
    """
    shelf, found = Shelf(), dict[str, dict[str, Any]]()
    for row in grid.methods:
        known = _finished(grid, row, folder)
        plan = on_disk.planned(grid.cell(row, grid.places()[0], grid.seeds[0]), folder / CELLS, None)
        found[row] = {"up": None, "down": None, "seconds": known, "reason": plan.reason}
        if plan.resolved is None:
            continue
        try:
            x, needs = plan.resolved.experiment, plan.resolved.method.info.needs
            material = shelf.prepare(x, None, Observer(), needs, fitting_rows.of(plan.resolved))
            found[row] |= _measured(plan.resolved, material, row, known)
        except UserError as e:
            found[row]["reason"] = str(e)
    return found


def _finished(grid: Grid, row: str, folder: Path) -> float | None:
    """Seconds of the finished cells of a row, in the mean."""
    plans = [on_disk.planned(cell, folder / CELLS, None) for cell in grid.cells() if cell.row == row]
    some = [s["seconds"]["all"] for p in plans if p.resolved is not None and (s := on_disk.finished(p.place)) is not None]
    return float(np.mean(some)) if some else None


def _measured(resolved: Resolved, material: Material, row: str, seconds: float | None) -> dict[str, Any]:
    from weft.cli.sizes import measure

    x, method = resolved.experiment, resolved.played
    material = material.under(chain_of(x))
    sizes = None if row in BASELINES else measure(method, material.bench, copies(material.clients), public=material.public)
    mean = {w: float(np.mean([sum(getattr(r, w).values()) for r in sizes.rounds])) if sizes else None for w in ("up", "down")}
    if seconds is None and row not in BASELINES:
        server = begin(
            method, material.bench, [c.info(method.info.asks) for c in material.clients], x.rounds, public=material.public
        )
        alone = packing.alone(adapted(method, material.bench, nobody(material.clients)))
        k = 1 if alone else min(len(material.clients), x.pack if isinstance(x.pack, int) else 8)
        per_step = _seconds_of_a_step(method, material, k, server)
        each = float(np.mean([_steps(method, c.n) for c in material.clients]))
        seconds = per_step / k * each * max(round(x.participation * len(material.clients)), 1) * x.rounds
    return mean | {"seconds": seconds}


def _steps(method: Any, rows: int) -> float:
    return float(method.steps or np.ceil(method.epochs * np.ceil(rows / method.batch)))


def _seconds_of_a_step(method: Any, material: Material, k: int, server: Any) -> float:
    """Of a pack, in plain training of the method's objective."""
    from weft.federation.pack import Pack
    from weft.federation.turn import Turn

    some = copies(material.clients)[:k]
    turns = [Turn(c, adapted(method, material.bench, c.info(method.info.asks)), dict(server.shared)) for c in some]
    pack = Pack(material.bench, turns, server.round, server.start, load=method.load)
    began, taken = 0.0, 0
    optimizer = pack.optimizer("*", settings=method.optim, steps=STEPS, size=method.batch)
    for batch in pack.batches(1.0, STEPS, method.batch):
        if taken == 1:
            began = time.perf_counter()  # the first step warms up
        pack.step(optimizer, method.objective, batch)
        taken += 1
    return (time.perf_counter() - began) / max(taken - 1, 1)
