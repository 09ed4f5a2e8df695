"""Federations of real processes, over Flower with TLS and keys, give the simulation's numbers. Needs the extra ``flower``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import item_files
import weft
from toy_runs import Dies, Killed, by_engine
from weft.federation.client import ClientState
from weft.runs.checkpoint import Checkpoint
from weft.storage.store import ClientStore

pytestmark = pytest.mark.processes

METHODS: dict[str, dict[str, Any]] = {
    "fedit": {"rank": 2},
    "fedsa-lora": {"rank": 2},
    "flora": {"ranks": "2,4"},
    "pfcr": {"tuning": 1, "length": 3, "heads": 2},
}
KEEPS = ("fedsa-lora", "pfcr")  # something of each client's own


def federation(tmp_path: Path, slug: str, engine: str) -> weft.Run:
    """Three rounds of two clients, the head started by a probe where the method has one to start."""
    more: dict[str, Any] = {"start_head": "probe", "probe_rounds": 2} if slug == "fedit" else {}
    if slug == "pfcr":  # which is of sequences of items
        item_files.domains(tmp_path / "own")
        more = {"data": str(tmp_path / "own"), "model": item_files.model(), "task": "next-item", "partition": "natural"}
    stopped = Dies(after=1) if slug in KEEPS and engine == "flower" else None
    try:
        return by_engine(tmp_path, slug, engine, 2, METHODS[slug], codec="quant8", observer=stopped, **more)
    except Killed:
        return weft.resume(tmp_path / "runs" / engine)  # with everything started anew


def personal(folder: Path, manifest: dict[str, Any] | None, name: str) -> dict[str, torch.Tensor]:
    """What a client remembers."""
    client = ClientState(name)
    ClientStore(folder, manifest).load(client)
    return client.kept


@pytest.mark.parametrize("slug", ["fedit", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "fedit")])
def test_processes_over_flower_give_the_numbers_of_the_simulation(slug: str, tmp_path: Path) -> None:
    here, there = (federation(tmp_path, slug, engine) for engine in ("simulation", "flower"))
    saved = {run: Checkpoint(run.folder / "checkpoint").load() for run in (here, there)}
    mine, theirs = (s.servers[0][0] for s in saved.values() if s is not None)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")

    (run,) = {p.parent.parent for p in there.folder.glob("sites/c0/*/rounds/site.json")}
    kept = 0
    for name in ("c0", "c1"):
        folder = there.folder / "sites" / name / run.name / "rounds"
        manifest = json.loads(json.loads((folder / "site.json").read_text())["state"])["clients"]
        at_site = personal(folder / "clients", manifest, name)
        simulated = personal(here.folder / "clients", saved[here].clients, name)  # type: ignore[union-attr]
        assert at_site.keys() == simulated.keys()
        for n, value in simulated.items():
            torch.testing.assert_close(at_site[n], value, rtol=0, atol=1e-9)
        kept += len(at_site)
        assert not list((there.folder / "clients").glob(f"{name}*"))  # it stays at the site
    assert (kept > 0) == (slug in KEEPS)

    for a, b in zip(here.rounds, there.rounds, strict=True):
        for way in ("down", "up"):
            assert a["bytes"]["train"][way]["parts"] == b["bytes"]["train"][way]["parts"]
            assert b["bytes"]["train"][way]["wire"] >= a["bytes"]["train"][way]["wire"]
        scores = {(e["view"], e["people"], e["metric"], e["pooling"]): e["value"] for e in a["evaluations"]}
        same = {(e["view"], e["people"], e["metric"], e["pooling"]): e["value"] for e in b["evaluations"]}
        assert same
        assert all(scores[k] == pytest.approx(v, abs=1e-9) for k, v in same.items())
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-9)
