"""Results of attacks that nobody has played, put into the folders of runs as ``weft audit`` puts them there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import page_runs
import weft
from weft.runs import audit_file
from weft.runs.audit_file import Impossible, Result


def result(attack: str = "labels", score: float | None = 0.8, **more: Any) -> Result:
    """One of update attacks on round 1, far above chance, unless told otherwise."""
    usual: dict[str, Any] = {
        "target": "3 clients, round 1", "measure": "labels guessed", "chance": 0.4, "most": 1.0, "n": 40, "low": None,
        "found": True, "sentence": f"What {attack} has found.", "about": {}, "settings": {}, "round": 1, "weft": "0.1",
    }  # fmt: skip
    return Result(attack=attack, score=score, **usual | more)


def kept(run: weft.Run, *results: Result, **impossible: Impossible) -> None:
    """Put them into the folder of a run."""
    for name in dict.fromkeys(r.attack for r in results):
        audit_file.keep(run.folder, name, [r for r in results if r.attack == name])
    for name, why in impossible.items():
        audit_file.keep_impossible(run.folder, name, why)


def hidden(run: weft.Run, to: Path, slug: str, seed: int, privacy: str, **settings: Any) -> weft.Run:
    """A run of three rounds like another one, of a method behind a chain; in its ``summary.json`` too."""
    made = page_runs.like(run, to / f"{slug}-{privacy.replace(':', '-')}-{len(list(to.iterdir()))}", slug, seed, 3, extras=())
    made.summary["settings"] = copy.deepcopy(made.summary["settings"])
    for name, value in {"privacy": privacy, **settings}.items():
        made.summary["settings"][name] = {"value": value, "origin": "user"}
    (made.folder / "summary.json").write_text(json.dumps(made.summary))
    return made
