"""Tiny whole runs on disk, for tests: a toy source, a backbone loaded once, and what an observer was told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
import weft
from command_line import table
from weft.backbones.backbone import Backbone
from weft.backbones.options import FILL, GENERATION, NEXT_ITEM, VQ_REC
from weft.data.rows import BOTH, Source
from weft.federation.method import Method
from weft.playing import execute
from weft.runs import prepare
from weft.storage import files
from weft.testing.data import answered, sequenced
from weft.testing.models import PICTURED_REPLIES, items

CLASSES = ("one", "two", "three")


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class Told(weft.Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.stages: dict[str, list[int]] = {}
        self.lines: list[dict[str, Any]] = []
        self.open: list[str] = []

    def say(self, text: str) -> None:
        self.sentences.append(text)

    def begin(self, stage: str, total: int) -> None:
        self.open.append(stage)
        self.stages[stage] = [total, 0]

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        if stage in self.stages:
            self.stages[stage][1] += by

    def end(self, stage: str) -> None:
        self.open.remove(stage)

    def round_done(self, record: dict[str, Any]) -> None:
        self.lines.append(record)


class Dies(Told):
    """Ends the process, as it were, after a round."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.after = after

    def round_done(self, record: dict[str, Any]) -> None:
        super().round_done(record)
        if record["round"] == self.after:
            raise Killed


def source(n: int = 60, seed: int = 0, reads: str = "texts") -> Source:
    rows, classes = tiny.rows(n, len(CLASSES), seed, reads=BOTH if reads == "answers" else reads), CLASSES
    if reads == "items":
        rows, classes = sequenced(rows), items(len(CLASSES))  # type: ignore[assignment]
    if reads == "answers":  # to questions about pictures
        rows, classes = answered(rows), ("answer",)  # type: ignore[assignment]
    return Source("toy", classes, rows, fingerprint=f"toy {n} {seed}")


def source_for(method: Method, n: int = 60) -> Source:
    """Rows that a backbone which has what a method needs can read."""
    home = tiny.home(method)
    if home in PICTURED_REPLIES:
        return source(n, reads="answers")
    return source(n, reads="items" if home == VQ_REC else "images" if home in tiny.IMAGES else "texts")


def model_for(method: Method) -> dict[str, Any]:
    """Settings of a run: a backbone that has what a method needs."""
    words = {"label_words": tiny.label_words(CLASSES)} if tiny.task_of(method) == FILL else {}
    if tiny.home(method) in PICTURED_REPLIES:
        words |= {"task": GENERATION, "template": "plain", "samples": 0}
    return {"model": tiny.home_folder(method)} | words


def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each tiny backbone once per process, and export nothing: what these tests look at lies before and after."""

    real = prepare.load_backbone

    def load(name: str, *, classes: tuple[str, ...], task: str = "auto", **more: Any) -> Backbone:
        kind = VQ_REC if task == NEXT_ITEM else Path(name).name.split("-")[0]
        if kind in PICTURED_REPLIES:  # by its template rows differ
            return real(name, classes=classes, task=task, **more)
        return tiny.backbone(kind if kind in (*tiny.IMAGES, VQ_REC) else "bert", classes=len(classes), task=task)

    monkeypatch.setattr(prepare, "load_backbone", load)
    monkeypatch.setattr(execute, "export_adapter", lambda *_: {"stub": True})


def run(runs: Path, **changes: Any) -> weft.Run:
    """Two rounds of three clients."""
    settings: dict[str, Any] = {
        "method": "fedit",
        "model": tiny.folder("bert"),
        "data": source(),
        "clients": 3,
        "rounds": 2,
        "max_length": 16,
        "device": "cpu",
        "precision": "float64",
        "partition": "iid",
        "runs": str(runs),
    }
    return weft.run(**(settings | changes))


def by_engine(root: Path, slug: str, engine: str, clients: int, parameters: dict[str, Any], **more: Any) -> weft.Run:
    """Three rounds in double precision, named after the engine that plays them, so that two can be compared."""
    data = root / "rows.csv"
    if "data" not in more and not data.exists():
        table(data)
    settings: dict[str, Any] = {
        "model": tiny.folder("bert"),
        "data": str(data),
        "runs": str(root / "runs"),
        "partition": "iid",
        "device": "cpu",
        "precision": "float64",
        "max_length": 16,
        "baselines": [],
    }
    return weft.run(
        slug, clients=clients, rounds=3, parameters=parameters | {"batch": 4}, engine=engine, name=engine, **settings | more
    )


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Die at the ``number``-th point where a file is about to be written, flushed, renamed or removed; what was written but not
    flushed is torn in half. Returns the points passed, as they come.
    """
    passed: list[str] = []

    def point(operation: str, path: Path) -> None:
        passed.append(f"{operation} {path.name}")
        if len(passed) == number:
            if operation == "fsync" and path.is_file():
                with open(path, "r+b") as f:
                    f.truncate(path.stat().st_size // 2)
            raise Killed

    monkeypatch.setattr(files, "point", point)
    return passed


def finished_rounds(folder: Path) -> list[str]:
    """Lines of ``rounds.jsonl`` that a checkpoint vouches for, read without the library."""
    state = folder / "checkpoint" / "state.json"
    if not state.exists():
        return []
    length = json.loads(json.loads(state.read_text())["state"])["length"]
    return (folder / "rounds.jsonl").read_bytes()[:length].decode().splitlines()
