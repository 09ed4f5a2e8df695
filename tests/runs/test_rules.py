"""Whole runs with a rule over their method and a step at their server: named, saved, resumed, exported as the method's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
import toy_runs
import weft
from command_line import table
from command_line import weft as command
from toy_runs import Told
from weft.errors import Interrupted
from weft.runs.checkpoint import digest


class Stop(Told):
    """Presses Ctrl-C after the first round."""

    def round_done(self, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "rules",
    [{"rule": "scaffold", "server_step": "adam"}, {"rule": "feddyn"}, {"rule": "mime", "rounds": 3}, {"rule": "mimelite"}],
    ids=lambda r: r["rule"],
)
def test_a_run_that_was_stopped_goes_on_as_one_that_never_was(
    rules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    about = {"name": "it", "participation": 0.7, "baselines": ["local"], "start_head": "probe", "probe_rounds": 2} | rules
    whole = toy_runs.run(tmp_path / "whole", **about)
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path / "cut", observer=Stop(), **about)
    again = weft.resume(tmp_path / "cut" / "it", data=toy_runs.source())
    assert digest(whole.folder) == digest(again.folder)
    assert whole.summary["headline"] == again.summary["headline"]
    assert again.summary["method"]["slug"] == "fedit"
    assert again.summary["method"]["rule"] == rules["rule"]
    assert again.summary["method"]["server_step"] == rules.get("server_step", "none")
    assert f'rule = "{rules["rule"]}"' in (again.folder / "experiment.toml").read_text()
    plain = toy_runs.run(tmp_path / "plain", **about | {"rule": "none", "server_step": "none"})
    assert plain.summary["headline"]["value"] is not None
    assert digest(plain.folder)["server"] != digest(whole.folder)["server"]
    local = [run.summary["baselines"]["local"] for run in (plain, whole, again)]
    assert local[1]["metrics"] == local[2]["metrics"]
    assert (local[0]["metrics"] == local[1]["metrics"]) == (rules["rule"] != "mime"), "two exchanges are one turn"
    assert local[1]["rounds"] == 1
    setup = digest(plain.folder / "setup"), digest(whole.folder / "setup")
    assert setup[0] == setup[1], "the head's own training is without the rule"


def test_its_adapter_is_the_methods_and_predicts(tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    run = weft.run(
        *("fedit", tiny.folder("bert"), str(rows), 3, 2),
        rule="scaffold",
        server_step="avgm",
        parameters={"rank": 2, "batch": 4},
        partition="iid",
        device="cpu",
        max_length=16,
        runs=str(tmp_path / "runs"),
        quiet=True,
    )
    assert run.adapter is not None
    assert (run.adapter / "adapter_config.json").is_file()
    assert len(run.predict(["some text", "another"])) == 2
    parts = run.summary["bytes"]["train"]
    assert set(parts["up"]["parts"]) - {"facts"} == {"lora", "head", "change"}
    assert parts["up"]["parts"]["change"] == parts["up"]["parts"]["lora"] + parts["up"]["parts"]["head"]


def test_help_plan_and_dry_run_name_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    got = command(capsys, "run", "--help-all")
    assert "--rule" in got.out
    assert "--server-step" in got.out
    where = ("--data", rows, "--model", tiny.folder("bert"), "--clients", 3, "--device", "cpu", "--partition", "iid")
    got = command(capsys, "run", *where, "--rule", "scaffold", "--server-step", "adam", "--dry-run", "--set", "method.rank=2")
    assert got.code == 0, got.err
    assert "fedit + scaffold + adam" in got.out
    assert "control" in got.out
    assert "change" in got.out
    got = command(capsys, "run", *where, "--rule", "scaffold", "--method", "flora", "--dry-run")
    assert got.code == 2
    assert "flora needs each update by itself" in got.err
    got = command(capsys, "run", *where, "--rule", "scafold")
    assert got.code == 2
    assert 'did you mean "scaffold"' in got.err
