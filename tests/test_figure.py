"""`scripts/figure.py`: a run becomes the figure of a method's page, with all that it was measured with."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import command_line
import figure
import figure_files
import toy_runs
from paths import ROOT

TOP = {"view": "global", "people": "global test", "metric": "accuracy", "value": 0.6712, "low": 0.644, "high": 0.7}
SUMMARY: dict[str, Any] = {
    "settings": {
        "model": {"value": "minilm", "origin": "default"},
        "data": {"value": "pydocs", "origin": "default"},
        "partition": {"value": "natural", "origin": "default"},
        "alpha": {"value": 0.5, "origin": "default"},
        "seed": {"value": 3, "origin": "user"},
        "max_length": {"value": 64, "origin": "recipe"},
    },
    "data": {"clients": 8},
    "rounds": 4,
    "headline": TOP,
    "baselines": {"probe": {"headline": TOP | {"value": 0.5891}}, "local": {"headline": None}},
    "backbone": {"precision": "float32"},
    "environment": {"versions": {"weft": "1", "torch": "2", "transformers": "3"}, "processors": 2, "device": "cpu"},
    "seconds": {"all": 12.34},
}

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a figure names the commit of a checkout")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Figures go there, not into the documentation."""
    monkeypatch.setattr(figure_files, "FOLDER", tmp_path / "figures")
    return tmp_path / "figures"


def measured(monkeypatch: pytest.MonkeyPatch, *words: str, **changes: Any) -> figure_files.Figure:
    """The figure of a run whose summary is made up."""
    monkeypatch.setattr(figure, "ran", lambda line: SUMMARY | changes)
    return figure.measure("fedit", words)


def test_a_tiny_run_is_measured_and_its_figure_is_complete(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_runs.light(monkeypatch)
    words = command_line.small(tmp_path, "--baselines", "local", "--rounds", 1)[1:]
    monkeypatch.setattr(sys, "argv", ["figure.py", "ffa-lora", *map(str, words)])
    assert figure.main() == 0
    found = figure_files.read(folder / "ffa-lora.toml")
    assert capsys.readouterr().out == f"{found.figure}\n"
    assert re.fullmatch(r"0\.\d{3} accuracy \(interval 0\.\d\d to \d\.\d\d\) on the common test rows", found.figure)
    assert re.fullmatch(r"local: 0\.\d{3} accuracy \(interval 0\.\d\d to \d\.\d\d\)", found.compared_with)
    assert found.command.startswith("weft run --method ffa-lora --model ")
    assert "--runs" not in found.command
    assert "3 clients, partition iid, 1 round, seed 0" in found.setting
    assert found.seconds > 0
    assert found.hardware["precision"] == "float64"  # of toy runs
    assert not found.carried_over


def test_the_headline_has_its_interval_and_people_and_the_setting_all_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, "--rounds", "4", "--runs", "elsewhere", "--runs=there", "--seed", "3", "--text", "a b")
    assert found.figure == "0.671 accuracy (interval 0.64 to 0.70) on the common test rows"
    assert found.setting == "minilm on pydocs, 8 clients, partition natural, 4 rounds, seed 3, with the recipe"
    assert found.command == "weft run --method fedit --rounds 4 --seed 3 --text 'a b'"
    assert found.compared_with == "probe: 0.589 accuracy (interval 0.64 to 0.70)"
    assert (found.seconds, found.versions) == (12.3, {"weft": "1", "torch": "2", "transformers": "3"})
    assert {n: v for n, v in found.hardware.items() if n != "cpu"} == {"cores": 2, "device": "cpu", "precision": "float32"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found.commit)
    own = measured(monkeypatch, headline=TOP | {"view": "personal", "people": "own test"})
    assert own.figure == "0.671 accuracy (interval 0.64 to 0.70) of the clients on their own test rows (view `personal`)"


def test_a_note_that_was_written_by_hand_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = figure_files.Figure("x", "x", "x", note="Mind the gap.", carried_over=True)
    figure_files.write(folder / "fedit.toml", old)
    found = measured(monkeypatch)
    assert (found.note, found.carried_over) == ("Mind the gap.", False)
    assert figure_files.read(folder / "fedit.toml") == found


def test_a_run_that_fails_or_has_no_headline_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        figure.measure("no-such-method", [])
    assert left.value.code == 2
    assert 'no method "no-such-method"' in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no headline"):
        measured(monkeypatch, headline=None)
    monkeypatch.setattr(sys, "argv", ["figure.py"])
    assert figure.main() == 2
    assert not folder.exists()
