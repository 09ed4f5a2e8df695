"""Trackers have the settings, and the numbers of every round once, also of a run that was killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from command_line import refused, small
from command_line import weft as typed
from toy_runs import Dies, Killed, Told
from weft.callbacks import TensorBoard, tracker
from weft.callbacks.tracker import numbers, parameters
from weft.errors import UserError

SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}, "rounds": 3}
Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def from_tensorboard(folder: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def client(folder: Path) -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    store = MlflowClient(tracking_uri=f"sqlite:///{folder / 'tracking' / 'mlflow.db'}")
    (experiment,) = [e for e in store.search_experiments() if e.name == "weft"]
    (run,) = store.search_runs([experiment.experiment_id])
    return store, run


def from_mlflow(folder: Path) -> Series:
    store, run = client(folder)
    return {n: [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, n)] for n in run.data.metrics}


def wanted(run: weft.Run) -> Series:
    """What the run's own records say, without the library's way of naming."""
    found: Series = {}
    for row in run.records():
        for name, value in row.items():
            if name in ("round", "view") or value is None:
                continue
            common = ("training_loss", "aggregation_error", "drift", "effective_rank", "seconds", "bytes_up", "bytes_down")
            whole = name if name in (*common, "memory") else f"global/{name}"
            found.setdefault(whole, []).append((row["round"], value))
    return found


def equal(found: Series, run: weft.Run) -> None:
    expected = wanted(run)
    assert {"global/accuracy", "training_loss", "bytes_up", "seconds", "aggregation_error", "drift", "memory"} <= expected.keys()
    assert found.keys() == expected.keys()
    for name, series in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in series], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in series], rel=1e-6), name


READ = {"tensorboard": from_tensorboard, "mlflow": from_mlflow}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_back_is_what_the_run_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    told = Told()
    run = toy_runs.run(tmp_path, track=[name], observer=told, **SMALL)
    equal(READ[name](run.folder), run)
    assert not [s for s in told.sentences if "left alone" in s]
    assert run.summary["settings"]["track"]["value"] == [name]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("told", [True, False])
def test_a_resumed_run_goes_on_in_the_same_and_repeats_no_round(name: str, told: bool, tmp_path: Path) -> None:
    """Killed after the tracker had been told of the last saved round, or before."""
    pytest.importorskip(name)

    class Dying(weft.Callback):
        def round_done(self, record: Mapping[str, Any]) -> None:
            if told and record["round"] == 1:
                raise Killed

    class First(Dies):
        def round_done(self, record: dict[str, Any]) -> None:
            if not told:
                super().round_done(record)

    (own,) = tracker.made([name])
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, callbacks=[own, Dying()], observer=First(1), **SMALL)
    (folder,) = tmp_path.iterdir()
    assert max(step for step, _ in READ[name](folder)["seconds"]) == (2 if told else 1)
    (again,) = tracker.made([name])
    run = weft.resume(folder, data=toy_runs.source(), callbacks=[again], quiet=True)
    equal(READ[name](folder), run)


def test_a_round_of_which_tensorboard_had_but_a_part_is_told_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    with pytest.raises(Killed):
        toy_runs.run(tmp_path, track=["tensorboard"], observer=Dies(1), **SMALL)
    (folder,) = tmp_path.iterdir()
    with SummaryWriter(str(folder / "tracking" / "tensorboard")) as writer:
        writer.add_scalar("global/accuracy", 7.0, 2)
    run = weft.resume(folder, data=toy_runs.source(), quiet=True)
    equal(from_tensorboard(folder), run)


def test_tensorboard_has_the_settings_as_hyper_parameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = toy_runs.run(tmp_path, track=["tensorboard"], **SMALL)
    events = EventAccumulator(str(run.folder / "tracking" / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["method.rank"].number_value == run.summary["settings"]["method.rank"]["value"]
    assert found["method"].string_value == "fedit"
    assert found["device"].string_value == "cpu"


def test_mlflow_has_the_settings_as_parameters_and_is_finished_or_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    run = toy_runs.run(tmp_path / "runs", track=["mlflow"], **SMALL)
    _, found = client(run.folder)
    assert found.data.params["method.rank"] == str(run.summary["settings"]["method.rank"]["value"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", run.summary["name"])
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", track=["mlflow"], observer=Dies(1), **SMALL)
    (folder,) = (tmp_path / "cut").iterdir()
    assert client(folder)[1].info.status == "KILLED"
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "cut"}  # nothing beside the runs' own folders


def test_mlflow_goes_where_its_own_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'ours.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.chdir(tmp_path)
    run = toy_runs.run(tmp_path / "runs", track=["mlflow"], **SMALL)
    assert not (run.folder / "tracking" / "mlflow.db").exists()
    store = MlflowClient(tracking_uri=uri)
    experiment = store.get_experiment_by_name("theirs")
    assert experiment is not None
    assert len(store.search_runs([experiment.experiment_id])) == 1


def test_wandb_writes_an_offline_run_and_goes_on_under_the_same_number(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, track=["wandb"], observer=(first := Dies(1)), **SMALL)
    (folder,) = tmp_path.iterdir()
    place = folder / "tracking"
    known = json.loads((place / "wandb.json").read_text())
    assert known["round"] == 1
    parts = sorted((place / "wandb").glob("offline-run-*"))
    assert [p.name.rsplit("-", 1)[1] for p in parts] == [known["run"]]
    time.sleep(1.1)  # wandb names the parts of a run by the second
    weft.resume(folder, data=toy_runs.source(), observer=(second := Told()))
    assert not [s for s in first.sentences + second.sentences if "left alone" in s]
    again = json.loads((place / "wandb.json").read_text())
    assert again == known | {"round": 3}
    wandb.teardown()  # waits for the process that writes: the end of a run is only told to it
    files = [f for p in sorted((place / "wandb").glob("offline-run-*")) for f in p.glob("*.wandb")]
    assert len(files) == 2
    steps = [step for f in files for step in history(f)]
    assert steps == [1, 2, 3]


def history(file: Path) -> list[int]:
    """The rounds in a file of wandb: a log as of LevelDB, of records in blocks of 32 KiB after 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if left := -at % 32768 if -at % 32768 < 7 else 0:  # too little for another record
            at += left
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                found.append(record.history.step.num)
                names = {item.key or "/".join(item.nested_key) for item in record.history.item}
                assert {"global/accuracy", "training_loss", "bytes_up"} <= names
    return found


def test_a_tracker_that_fails_in_the_middle_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def fail(self: TensorBoard, step: int, numbers: Mapping[str, float]) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorBoard, "log", fail)
    told = Told()
    run = toy_runs.run(tmp_path, track=["tensorboard"], observer=told, **SMALL)
    assert run.finished
    said = [s for s in told.sentences if "left alone" in s]
    assert said == ["TensorBoard failed and is left alone from here on (OSError: No space left on device)."]


def test_one_that_is_not_installed_is_refused_by_the_name_of_its_extra_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    for name, extra in {"tensorboard": "track", "mlflow": "mlflow", "wandb": "wandb"}.items():
        with pytest.raises(UserError, match=rf"'\.\[{extra}\]'\.$"):
            toy_runs.run(tmp_path / "runs", track=[name], **SMALL)
    assert not (tmp_path / "runs").exists()
    got = typed(capsys, *small(tmp_path, "--track", "tensorboard"))
    assert got.code == 2
    assert "TensorBoard needs tensorboard: in a checkout of Weft, type pip install" in got.err
    refused(typed(capsys, *small(tmp_path, "--track", "tensorboard,neptune")), "track", "neptune")


def test_the_extras_are_declared() -> None:
    import tomllib

    from paths import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for kind in tracker.Tracker.__subclasses__():
        assert any(kind.package in requirement for requirement in extras[kind.extra]), kind
        assert kind.extra in extras["all"][0]


def test_no_number_that_is_none_or_not_finite_is_handed_on() -> None:
    line = {"round": 0, "loss": None, "aggregation_error": float("inf"), "seconds": {"training": 2.0}, "bytes": {}}
    assert numbers(line) == {"seconds": 2.0}
    about = {"settings": {"a": {"value": [1, 2]}, "b": {"value": None}, "device": {"value": "auto"}}, "pinned": {"device": "cpu"}}
    assert parameters(about) == {"a": "[1, 2]", "b": "null", "device": "cpu"}


def test_importing_the_callbacks_loads_no_tracker_and_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, weft.callbacks; print({'torch', 'tensorboard', 'mlflow', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "set()"
    assert importlib.util.find_spec("weft.callbacks.wandb") is not None
