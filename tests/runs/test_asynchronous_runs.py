"""Whole runs of asynchronous aggregation: killed anywhere and resumed, and what is refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import command_line
import toy_runs
import weft
from toy_runs import Killed, kill_at
from weft.errors import UserError
from weft.experiment import resolve
from weft.runs.checkpoint import Checkpoint, digest, without_times

FILE = """
[slow]
speed = 0.0005
memory = 4
bandwidth = 1
latency = 0.2

[fast]
speed = 1
memory = 8
bandwidth = 100
latency = 0.1
share = 2
"""
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}, "rounds": 3, "clients": 4, "report": False}
BUFFER: dict[str, Any] = {"aggregation": "fedbuff", "buffer": 2, "concurrency": 3}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.fixture
def devices(tmp_path: Path) -> str:
    file = tmp_path / "devices.toml"
    file.write_text(FILE)
    return str(file)


def under_way(run: Path) -> Any:
    """What the checkpoint says of turns that have not ended."""
    saved = Checkpoint(run / "checkpoint").load()
    assert saved is not None
    return saved.flights


def test_a_run_killed_at_any_write_flush_rename_or_removal_goes_on_with_the_turns_that_were_under_way(
    tmp_path: Path, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = SMALL | BUFFER | {"method": "fedsa-lora", "devices": devices, "name": "it", "eval_every": 0}
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a flush guards against is played: unflushed files are torn
    with monkeypatch.context() as patch:
        points = kill_at(patch, -1)
        whole = toy_runs.run(tmp_path / "whole", **about)
    assert any(any(line["staleness"].values()) for line in whole.rounds)
    assert sum(".safetensors" in p and p.startswith("remove") for p in points) > 3
    first = next(i for i, p in enumerate(points) if "state.json" in p)
    for number in range(first, len(points) + 1):
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                toy_runs.run(tmp_path / str(number), **about)
        again = weft.resume(tmp_path / str(number) / "it", data=toy_runs.source())
        assert digest(again.folder) == digest(whole.folder), points[number - 1]
        assert [without_times(line) for line in again.rounds] == [without_times(line) for line in whole.rounds]
        assert again.summary["bytes"] == whole.summary["bytes"]
        shutil.rmtree(tmp_path / str(number))


def test_more_rounds_go_on_with_those_who_are_at_work(tmp_path: Path, devices: str) -> None:
    about = SMALL | BUFFER | {"devices": devices}
    whole = toy_runs.run(tmp_path, name="whole", **about | {"rounds": 5})
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="stopped", observer=toy_runs.Dies(after=2), **about | {"rounds": 5})
    assert len(under_way(tmp_path / "stopped")) > 0
    assert len(list((tmp_path / "stopped" / "flights").iterdir())) == len(under_way(tmp_path / "stopped"))
    again = weft.resume(tmp_path / "stopped", data=toy_runs.source())
    assert digest(again.folder) == digest(whole.folder)
    assert under_way(again.folder) == under_way(whole.folder)


def test_a_damaged_file_of_a_turn_under_way_is_one_sentence(tmp_path: Path, devices: str) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="it", observer=toy_runs.Dies(after=0), devices=devices, **SMALL | BUFFER)
    for file in (tmp_path / "it" / "flights").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"missing or damaged: .*\.$"):
        weft.resume(tmp_path / "it", data=toy_runs.source())


def test_the_same_run_twice_is_the_same_and_baselines_and_a_probe_wait(tmp_path: Path, devices: str) -> None:
    more = SMALL | BUFFER | {"devices": devices, "start_head": "probe", "probe_rounds": 2, "baselines": ["local", "probe"]}
    run = toy_runs.run(tmp_path, repeat=2, **more)
    assert run.summary["repeat"] == {"runs": 2, "identical": True}
    assert all("staleness" in line for line in run.rounds)
    for where in ("setup", "baselines/local"):
        lines = [json.loads(line) for line in (run.folder / where / "rounds.jsonl").read_text().splitlines()]
        assert not any("staleness" in line for line in lines)
    assert run.summary["clock"]["seconds"] == run.rounds[-1]["clock"]["now"] > 0


def test_codecs_of_differences_read_what_their_clients_began_from(tmp_path: Path, devices: str) -> None:
    run = toy_runs.run(tmp_path, devices=devices, codec="quant8", download_codec="half", **SMALL | BUFFER | {"rounds": 5})
    assert not any(line["refused"] for line in run.rounds)
    assert any(any(line["staleness"].values()) for line in run.rounds)


PHONES: dict[str, Any] = {"devices": "phones", "aggregation": "fedbuff"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"aggregation": "fedbuff"}, r"no device keeps the time: give --devices too"),
    ({"buffer": 3}, r'^buffer is 3, which aggregation = "synchronous" has no use for: leave --buffer out'),
    (PHONES | {"aggregation": "fedasync", "buffer": 3}, r'^buffer is 3, which aggregation = "fedasync" has no use for'),
    (PHONES | {"mixing": 0.5}, r'^mixing is 0\.5, which aggregation = "fedbuff" has no use for'),
    (PHONES | {"method": "flora"}, r"^flora needs each update by itself and not their mean, so its server has to wait"),
    (PHONES | {"method": "fedra"}, r"^fedra plans what each of its rounds is and who takes part"),
    (PHONES | {"method": "lotteryfl"}, r"^lotteryfl sends some entries of its tensors"),
    (PHONES | {"method": "fedpm"}, r"^fedpm sends tensors that its server does not hold"),
    (PHONES | {"method": "rolora"}, r"^rolora has all clients of a round train the same factor"),
    (PHONES | {"method": "depthfl"}, r"^depthfl adds up at its server what whole rounds change"),
    (PHONES | {"deadline": 5.0}, r"^deadline = \"5\.0\" closes rounds, and nobody waits for one here: leave --aggregation out"),
    (PHONES | {"periods": 2}, r'^periods = "2" lets rows arrive between rounds'),
    (PHONES | {"availability": "trace.csv"}, r'^availability = "trace\.csv" says who is drawn into a cohort'),
    (PHONES | {"cohorts": "carbon", "grids": "solar"}, r'^cohorts = "carbon" says who is drawn into a cohort, and here'),
    (PHONES | {"energy_budget": 5.0}, r'^energy_budget = "5\.0" is compared with what the next round'),
    (
        PHONES | {"carbon_budget": 5.0, "grids": "solar"},
        r'^carbon_budget = "5\.0" is compared with what the next round',
    ),
    (PHONES | {"rule": "scaffold"}, r'^rule = "scaffold" adds up what whole cohorts change'),
    (PHONES | {"rule": "mime"}, r'^rule = "mime" adds up what whole cohorts change'),
    (PHONES | {"robust": "median"}, r'^robust = "median" compares updates that began from one model'),
    (PHONES | {"max_factor": 10.0}, r'^max_factor = "10\.0" takes back states'),
    (PHONES | {"codec": "shift+quant8"}, r"has a shift that client and server move in step"),
    (PHONES | {"aggregation": "fedasync", "server_step": "avgm"}, r'^server_step = "avgm" steps towards a mean'),
    (PHONES | {"engine": "flower"}, r'^aggregation = "fedbuff" is played on the clock of simulated devices, and sites are real'),
    (PHONES | {"concurrency": 0}, r"^concurrency is 0, but must be at least 1"),
    (PHONES | {"mixing": 1.5}, r"^mixing is 1\.5, but must be at most 1"),
    ({"aggregation": "fedbuf", "devices": "phones"}, r'^aggregation is "fedbuf", but must be .*fedbuff'),
]


@pytest.mark.parametrize(("asked", "sentence"), REFUSED)
def test_what_can_not_go_on_without_waiting_is_refused_before_anything_is_loaded(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        resolve(asked)
    assert str(told.value).endswith(".")
    assert "\n" not in str(told.value)


def test_depthfl_without_feddyn_need_not_wait() -> None:
    assert resolve(PHONES | {"method": "depthfl", "method.dyn": 0.0}).experiment.aggregation == "fedbuff"


def test_a_buffer_for_more_clients_than_there_are_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command_line.small(tmp_path, "--devices", "phones", "--aggregation", "fedbuff", "--buffer", 4, "--dry-run")
    assert "buffer is 4, and 3 clients can't fill it" in command_line.weft(capsys, *asked).err
