"""Whole runs by any engine that this process or workers play, stopped or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import weft
from toy_runs import by_engine
from weft.engines.observer import Observer
from weft.runs.checkpoint import Checkpoint
from weft.testing.compare import assert_same


def federation(tmp_path: Path, slug: str, engine: str, observer: Observer | None = None, **more: Any) -> weft.Run:
    if slug == "fedit" and "baseline" not in more:
        more |= {"start_head": "probe", "probe_rounds": 2}
    return by_engine(tmp_path, slug, engine, 4, {}, observer=observer, **more)


def language(tmp_path: Path, engine: str) -> weft.Run:
    """A tiny decoder, whose answers are the last word of their prompts."""
    data = tmp_path / "prompts.jsonl"
    if not data.exists():
        words = [[f"w{(7 * i + j * j) % 40}" for j in range(2 + i % 5)] for i in range(60)]
        data.write_text("".join(json.dumps({"prompt": " ".join(w), "completion": w[-1]}) + "\n" for w in words))
    about: dict[str, Any] = {
        "clients": 4,
        "rounds": 2,
        "samples": 4,
        "new_tokens": 4,
        "template": "plain",
    }
    return weft.run(
        "fedit",
        tiny.folder("llama", "lm", num_hidden_layers=2),
        str(data),
        task="generation",
        parameters={"batch": 4, "rank": 2, "sites": "q,v"},
        engine=engine,
        name=f"language-{engine}",
        runs=str(tmp_path / "runs"),
        device="cpu",
        precision="float64",
        baselines=[],
        **about,
    )


def saved(run: weft.Run) -> dict[str, torch.Tensor]:
    found = Checkpoint(run.folder / "checkpoint").load()
    assert found is not None
    return found.servers[0][0]


def check_language(here: weft.Run, away: weft.Run) -> None:
    assert_same(saved(here), saved(away), 1e-9)
    assert [r["bytes"] for r in here.rounds] == [r["bytes"] for r in away.rounds]
    assert away.metrics == pytest.approx(here.metrics, rel=1e-9)
    assert "rouge_l" in away.metrics
    assert (away.folder / "samples.jsonl").read_text() == (here.folder / "samples.jsonl").read_text()


class Stops(Observer):
    """Ctrl-C after the first round."""

    def round_done(self, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt
