"""Runs that share data, backbone and tokens have the numbers of runs that do not, and share nothing that differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
import toy_runs
from weft import start
from weft.data.rows import Source
from weft.engines.observer import Observer
from weft.experiment import SETTINGS, Experiment, resolve
from weft.playing.run import Run
from weft.runs import shelf
from weft.runs.checkpoint import digest
from weft.runs.prepare import Material, prepare

NOTE = "a note on the rows"
ROWS = toy_runs.source()
SMALL = {"rank": 2, "steps": 2}
ABOUT: tuple[dict[str, Any], ...] = (
    {"method": "fedit", "parameters": SMALL, "start_head": "probe", "probe_rounds": 1},
    {"method": "fedit", "parameters": SMALL},
    {"method": "hetlora", "parameters": SMALL | {"least": 1, "gamma": 0.5, "decay": 0.0}},  # whose server renews facts
    {"method": "fedit", "parameters": SMALL, "privacy": "dp-sgd", "epsilon": 8.0, "delta": 0.01, "insecure_noise": True},
    {"method": "fedit", "parameters": SMALL, "lora_dropout": 0.1, "rounds": 1},
)


def settings(**more: Any) -> dict[str, Any]:
    about = {"method": "fedit", "parameters": SMALL, "model": tiny.folder("bert"), "clients": 3, "rounds": 2, "max_length": 16}
    return about | {"device": "cpu", "precision": "float64", "partition": "iid"} | more


def played(
    place: Path, name: str, shared: shelf.Shelf | None, told: Observer | None = None, rows: Source = ROWS, **more: Any
) -> Run:
    return start.start(resolve(settings(runs=str(place), name=name, **more)), rows, told, shelf=shared)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every material that is prepared."""
    found: list[int] = []

    def counting(*args: Any) -> Any:
        found.append(1)
        args[2].say(NOTE)
        return prepare(*args)

    monkeypatch.setattr(shelf, "prepare", counting)
    return found


def test_only_settings_of_material_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()

    class Watched(Experiment):
        def __getattribute__(self, name: str) -> Any:
            if name in SETTINGS:
                read.add(name)
            return super().__getattribute__(name)

    prepare(Watched(**settings(ranks="1:2,3")), ROWS, Observer())
    assert {"seed", "ranks", "devices", "data", "alpha", "max_length", "precision", "public"} <= read
    assert not read & shelf.UNREAD


def test_runs_beside_each_other_have_the_numbers_of_runs_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    shared, said = shelf.Shelf(), []
    for i, about in enumerate(ABOUT):
        told = toy_runs.Told()
        beside = played(tmp_path, f"beside-{i}", shared, told, **about)
        said.append(told.sentences)
        apart = played(tmp_path, f"apart-{i}", None, **about)
        assert digest(beside.folder) == digest(apart.folder)
        assert beside.summary["evaluations"] == apart.summary["evaluations"]
    assert len(made) == 1 + len(ABOUT)
    assert all(NOTE in sentences for sentences in said)


@pytest.mark.parametrize("change", [{"seed": 1}, {"partition": "dirichlet"}, {"max_length": 8}, {"limit": 30}, {"ranks": "1,2"}])
def test_what_differs_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    toy_runs.light(monkeypatch)
    made, shared = counted(monkeypatch), shelf.Shelf()
    for i, more in enumerate(({}, change, change)):
        beside = played(tmp_path, f"beside-{i}", shared, method="flora", parameters=SMALL, **more)
    apart = played(tmp_path, "apart", None, method="flora", parameters=SMALL, **change)
    assert digest(beside.folder) == digest(apart.folder)
    assert len(made) == 2 + 1


def test_other_rows_in_memory_are_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    made, shared = counted(monkeypatch), shelf.Shelf()
    for i, rows in enumerate((toy_runs.source(), toy_runs.source(seed=1))):
        played(tmp_path, f"run-{i}", shared, rows=rows)
    assert len(made) == 2


def test_a_method_that_needs_a_head_does_not_get_a_backbone_that_was_loaded_without_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy_runs.light(monkeypatch)
    made, shared = counted(monkeypatch), shelf.Shelf()
    for needs in ((), (), ("head",), ("head", "images")):
        shared.prepare(Experiment(**settings()), ROWS, Observer(), needs)
    assert len(made) == 2


def test_a_method_of_label_words_gets_no_backbone_that_was_loaded_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def prepare(_x: Experiment, _given: Any, _observer: Observer, needs: tuple[str, ...], _fits: Any) -> Material:
        asked.append(needs)
        return Material(None, [], None, {})  # type: ignore[arg-type]

    monkeypatch.setattr(shelf, "prepare", prepare)
    shared = shelf.Shelf()
    for needs in (("texts",), ("texts", "label words"), ("texts", "label words"), ("texts", "head"), ()):
        shared.prepare(Experiment(**settings()), ROWS, Observer(), needs)
    assert asked == [("texts",), ("texts", "label words"), ("texts", "head"), ()]
