"""Runs beside each other: what differs is shown, and where nothing does that is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from command_line import refused, weft
from weft.errors import UserError
from weft.runs.comparing import compare

Capture = pytest.CaptureFixture[str]
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("comparing") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        toy_runs.run(where, name="one", **SMALL)
        toy_runs.run(where, name="same", **SMALL)
        toy_runs.run(where, name="rank", **SMALL | {"parameters": SMALL["parameters"] | {"rank": 2}})
        toy_runs.run(where, name="data", data=toy_runs.source(seed=5), **SMALL)
        toy_runs.run(where, name="method", method="fedbf", **SMALL)
    return where


def test_equal_runs_have_the_same_settings_and_the_same_results(runs: Path, capsys: Capture) -> None:
    found = compare([runs / "one", runs / "same"])
    assert found.differences == ()
    assert found.verdict == "The same settings and the same results."
    got = weft(capsys, "diff", runs / "one", runs / "same")
    assert (got.code, got.out) == (0, "The same settings and the same results.\n")


def test_a_setting_that_differs_is_shown_with_both_values_and_what_came_of_it(runs: Path, capsys: Capture) -> None:
    found = compare([runs / "one", runs / "rank"])
    (setting,) = found.of("settings")
    assert (setting.name, setting.values) == ("method.rank", (16, 2))
    assert found.of("data") == found.of("weights") == found.of("environment") == []
    results = {one.name: one.values for one in found.of("results")}
    for i, name in enumerate(("one", "rank")):
        phases = json.loads((runs / name / "summary.json").read_text())["bytes"]
        assert results["bytes up"][i] == sum(phase["up"]["wire"] for phase in phases.values())
    assert "rounds" not in results
    assert found.verdict == "Settings and results differ."
    shown = weft(capsys, "diff", runs / "one", runs / "rank").out
    assert "method.rank" in shown
    assert "method.alpha" not in shown


def test_other_data_under_the_same_name_are_noticed(runs: Path) -> None:
    found = compare([runs / "one", runs / "data"])
    assert found.of("settings") == []
    assert [one.values for one in found.of("data") if one.name == "fingerprint"] == [("toy 60 0", "toy 60 5")]
    assert found.verdict == "The same settings, with other data, but other results."


def test_versions_commit_and_weights_are_compared(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "one", tmp_path / "copy"))
    about = json.loads((copy / "summary.json").read_text())
    about["environment"]["versions"]["torch"] = "1.0"
    about["environment"]["commit"] = "abc"
    about["backbone"]["sha256"] = "0" * 64
    (copy / "summary.json").write_text(json.dumps(about))
    found = compare([runs / "one", copy])
    assert {one.name for one in found.of("environment")} == {"torch", "commit"}
    assert [one.name for one in found.of("weights")] == ["backbone"]
    assert found.verdict == "The same settings and the same results, but other weights and another environment."


def test_three_runs_of_two_methods_are_a_column_each_and_what_one_has_not_is_empty(runs: Path, capsys: Capture) -> None:
    found = json.loads(weft(capsys, "diff", runs / "one", runs / "same", runs / "method", "--json").out)
    assert found["settings"]["method"] == ["fedit", "fedit", "fedbf"]
    assert found["settings"]["method.rank"] == [16, 16, None]
    assert found["same_settings"] is False
    assert [Path(run).name for run in found["runs"]] == ["one", "same", "method"]


def test_what_auto_turned_out_to_be_is_compared_and_not_the_word(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "one", tmp_path / "copy"))
    about = json.loads((copy / "summary.json").read_text())
    about["settings"]["device"]["value"] = "auto"
    (copy / "summary.json").write_text(json.dumps(about))
    assert compare([runs / "one", copy]).differences == ()
    about["pinned"]["device"] = "mps"
    (copy / "summary.json").write_text(json.dumps(about))
    assert [one.values for one in compare([runs / "one", copy]).of("settings")] == [("cpu", "mps")]


def test_a_setting_that_there_was_not_then_had_its_default(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "one", tmp_path / "copy"))
    about = json.loads((copy / "summary.json").read_text())
    del about["settings"]["server_step"]
    (copy / "summary.json").write_text(json.dumps(about))
    assert compare([runs / "one", copy]).differences == ()


def test_one_run_alone_and_what_is_none_are_refused_in_a_sentence(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    refused(weft(capsys, "diff", runs / "one"), "one run differs from nothing")
    refused(weft(capsys, "diff", runs / "one", tmp_path), "nothing of a run was saved in")
    (tmp_path / "experiment.toml").touch()
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        compare([runs / "one", tmp_path])
