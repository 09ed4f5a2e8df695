"""What an adapter has cost over its runs, by hand; and how its record goes from one run to the next."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import toy_runs
import weft
from toy_runs import Dies, Killed
from weft.export.about import About
from weft.report import terminal
from weft.runs import lifetime

SENT = {"setup": {"down": {"wire": 1}, "up": {"wire": 2}}, "train": {"down": {"wire": 10}, "up": {"wire": 20}}}
CLOCK = {"seconds": 5.0, "joules": 7.0, "grams": None, "setup_seconds": 1.0, "setup_joules": 0.5, "setup_grams": None}
NONE: dict[str, Any] = {"baselines": [], "report": False, "rounds": 1, "parameters": {"rank": 2, "steps": 1, "sites": "q"}}


def summary(data: str, **more: Any) -> dict[str, Any]:
    return {"bytes": SENT, "data": {"fingerprint": data}, "clock": CLOCK, **more}


def test_runs_and_tasks_by_hand() -> None:
    first = lifetime.of(summary("a"))
    assert {n: first[n] for n in ("runs", "whole", *lifetime.COSTS)} == {
        "runs": 1,
        "whole": True,
        "bytes": 33,
        "seconds": 6.0,
        "joules": 7.5,
        "grams": None,
    }
    again = lifetime.of(summary("a", start={"lifetime": first}))
    assert (again["runs"], len(again["tasks"]), again["bytes"], again["joules"]) == (2, 1, 66, 15.0)
    other = lifetime.of(summary("b", start={"lifetime": again}, clock=CLOCK | {"grams": 2.0, "setup_grams": 0.5}))
    assert (other["runs"], len(other["tasks"]), other["seconds"], other["grams"]) == (3, 2, 18.0, None)
    plain = lifetime.of({n: v for n, v in summary("c", start={"lifetime": again}).items() if n != "clock"})
    assert (plain["seconds"], plain["joules"], plain["bytes"]) == (None, None, 99)
    strange = lifetime.of(summary("a", start={"adapter": "of PEFT"}))
    assert (strange["runs"], strange["whole"], strange["bytes"]) == (1, False, 33)


def test_an_adapter_carries_what_its_runs_have_cost(tmp_path: Path) -> None:
    timed = NONE | {"devices": "phones", "grids": "solar", "precision": "float32"}
    first = toy_runs.run(tmp_path, name="first", **timed)
    told = first.summary["clock"]
    record = About.read(first.folder / "adapter").lifetime
    assert record == first.summary["lifetime"]
    assert (record["joules"], record["grams"], record["seconds"]) == (told["joules"], told["grams"], told["seconds"])
    assert record["tasks"] != ["toy"]
    data = toy_runs.source(60, seed=1)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="second", start=str(first.folder), data=data, observer=Dies(), **timed | {"rounds": 2})
    second = weft.resume(tmp_path / "second", data=data)
    total = second.summary["lifetime"]
    assert (total["runs"], len(total["tasks"]), total["whole"]) == (2, 2, True)
    for name in ("joules", "grams", "seconds"):
        assert total[name] == pytest.approx(told[name] + second.summary["clock"][name])
    assert json.loads((second.folder / "adapter" / "weft.json").read_text())["lifetime"] == total
    out = Console(width=400, record=True, file=io.StringIO())
    terminal.closing(out, second.summary, second.rounds)
    said = out.export_text()
    assert "over its lifetime of 2 runs the adapter took " in said
    assert "; for each of 2 tasks " in said
    terminal.closing(out, first.summary, first.rounds)
    assert "lifetime" not in out.export_text()


def test_an_adapter_of_pefts_tells_nothing_of_its_past(tmp_path: Path) -> None:
    about = NONE | {"precision": "float32"}
    first = toy_runs.run(tmp_path, name="first", **about)
    (first.folder / "adapter" / "weft.json").unlink()
    second = toy_runs.run(tmp_path, name="second", start=str(first.folder / "adapter"), **about)
    assert second.summary["start"]["lifetime"] is None
    assert (second.summary["lifetime"]["runs"], second.summary["lifetime"]["whole"]) == (1, False)
    out = Console(width=400, record=True, file=io.StringIO())
    terminal.closing(out, second.summary, second.rounds)
    assert "in 1 run, not counting what nobody tells of its past, the adapter took " in out.export_text()
