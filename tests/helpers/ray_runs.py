"""Whole runs by any engine that this process or workers play, stopped or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import weft
from toy_runs import by_engine
from weft.engines.observer import Observer
from weft.runs.checkpoint import Checkpoint


def federation(tmp_path: Path, slug: str, engine: str, observer: Observer | None = None, **more: Any) -> weft.Run:
    if slug == "fedit" and "baseline" not in more:
        more |= {"start_head": "probe", "probe_rounds": 2}
    return by_engine(tmp_path, slug, engine, 4, {}, observer=observer, **more)


def saved(run: weft.Run) -> dict[str, torch.Tensor]:
    found = Checkpoint(run.folder / "checkpoint").load()
    assert found is not None
    return found.servers[0][0]


class Stops(Observer):
    """Ctrl-C after the first round."""

    def round_done(self, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt
