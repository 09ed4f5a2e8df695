"""A run that is stopped anywhere and continued gives the numbers of a run that never was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
import toy_runs
import weft
from every_method import METHODS, built, small, some
from toy_runs import Killed, Told, kill_at
from weft.errors import Interrupted, UserError
from weft.export.predictor import model_folder
from weft.methods import registry
from weft.runs.checkpoint import digest, without_times
from weft.storage import files

UNBEGUN = r"nothing of a run was saved in .*: start the one that was stopped there again"
SMALL: dict[str, Any] = {
    "clients": 2,
    "data": toy_runs.source(24),
    "start_head": "probe",
    "probe_rounds": 2,
    "parameters": {"steps": 1, "batch": 4},
    "eval_every": 0,
}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


class StopAfter(weft.Observer):
    """Presses Ctrl-C once a round is done."""

    def __init__(self, round: int) -> None:
        self.round = round

    def round_done(self, record: dict[str, Any]) -> None:
        if record["round"] == self.round:
            raise KeyboardInterrupt


def only_run(runs: Path) -> Path:
    (found,) = runs.iterdir()
    return found


def same(a: weft.Run, b: weft.Run) -> None:
    """Server, clients, rounds and closing numbers are equal to the last bit."""
    assert digest(a.folder) == digest(b.folder)
    assert [without_times(line) for line in a.rounds] == [without_times(line) for line in b.rounds]
    assert a.finished
    assert b.finished
    for name in ("headline", "best_by_validation", "evaluations", "bytes", "pack"):
        assert a.summary[name] == b.summary[name], name
    settings = [{n: v for n, v in run.summary["settings"].items() if n != "runs"} for run in (a, b)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora", "diana"])
def test_a_run_killed_at_any_write_flush_rename_or_removal_and_resumed_equals_one_never_killed(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = "shift+randk:share=0.5" if slug == "diana" else "identity"

    def play(runs: Path) -> weft.Run:
        return toy_runs.run(runs, **SMALL | {"method": slug, "name": "it", "codec": codec})

    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a flush guards against is played: unflushed files are torn
    with monkeypatch.context() as patch:
        points = kill_at(patch, -1)
        whole = play(tmp_path / "whole")
    kinds = {p.split()[0] for p in points}
    assert kinds == {"write", "fsync", "rename", "remove"}
    assert slug == "fedit" or any("clients" in p for p in points)
    assert (slug == "diana") == ("fsync 0" in points)  # the folder of the notes
    for number in range(1, len(points) + 1):
        runs = tmp_path / str(number)
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                play(runs)
        begun = (runs / "it" / "experiment.toml").is_file()
        if not begun:  # nothing was played yet: there is nothing to continue, and the sentence says so
            if (runs / "it").is_dir():
                with pytest.raises(UserError, match=UNBEGUN):
                    weft.resume(runs / "it", data=SMALL["data"])
                with pytest.raises(UserError, match=UNBEGUN):
                    model_folder(runs / "it")
            continue
        done = len(toy_runs.finished_rounds(runs / "it"))
        told = Told()
        again = weft.resume(runs / "it", data=SMALL["data"], observer=told)
        same(whole, again)
        assert [line["round"] for line in told.lines] == list(range(done, 2)), points[number - 1]
        assert not [p for p in (runs / "it").rglob("*") if p.name.endswith(files.TEMPORARY) or p.name == "spool"]
        shutil.rmtree(runs)


@pytest.mark.parametrize("slug", some(METHODS))
def test_every_method_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(slug: str, tmp_path: Path) -> None:
    method = small(slug)
    data = toy_runs.source_for(built(slug))
    own = registry.values(method)
    own |= {"steps": 1} if "steps" in own else {}
    if own.get("rank", 0) > 32:  # the width of tiny models
        own["rank"] = 8
    common: dict[str, Any] = {
        "method": slug,
        **toy_runs.model_for(method),
        "data": data,
        "rounds": 3,
        "clients": 4,
        "participation": 0.5,
        "dropout": 0.2,
        "codec": method.info.codec or "quant8",
        "eval_every": 2,
        "parameters": own,
    }
    whole = toy_runs.run(tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path / "cut", observer=StopAfter(0), **common)
    same(whole, weft.resume(only_run(tmp_path / "cut"), data=data))


def test_stopping_says_how_to_go_on_and_stopping_twice_changes_nothing(tmp_path: Path) -> None:
    whole = toy_runs.run(tmp_path / "whole", rounds=3)
    with pytest.raises(Interrupted, match=r"weft resume .*fedit-toy") as stop:
        toy_runs.run(tmp_path / "cut", rounds=3, observer=StopAfter(0))
    assert isinstance(stop.value, KeyboardInterrupt)
    folder = only_run(tmp_path / "cut")
    assert not weft.load_run(folder).finished
    assert len(weft.load_run(folder).rounds) == 1
    with pytest.raises(Interrupted):
        weft.resume(folder, data=toy_runs.source(), observer=StopAfter(1))
    same(whole, weft.resume(folder, data=toy_runs.source()))


def test_stopping_before_the_first_round_leaves_nothing_behind(tmp_path: Path) -> None:
    class Impatient(weft.Observer):
        def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing had begun"):
        toy_runs.run(tmp_path / "runs", observer=Impatient())
    assert not list((tmp_path / "runs").iterdir())


def test_a_stopped_baseline_is_continued_too(tmp_path: Path) -> None:
    class Stop(weft.Observer):
        def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
            if stage == "baseline local" and by:
                raise KeyboardInterrupt

    common: dict[str, Any] = SMALL | {"baselines": ["local", "central", "probe"]}
    whole = toy_runs.run(tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path / "cut", observer=Stop(), **common)
    again = weft.resume(only_run(tmp_path / "cut"), data=SMALL["data"])
    same(whole, again)
    for name in ("local", "central"):
        assert digest(whole.folder / "baselines" / name) == digest(again.folder / "baselines" / name)
        assert whole.summary["baselines"][name]["metrics"] == again.summary["baselines"][name]["metrics"]


def test_a_full_disk_is_one_sentence_and_what_was_saved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = toy_runs.run(tmp_path / "whole")

    def full(operation: str, path: Path) -> None:
        if operation == "fsync" and path.name == "server-000002-end.safetensors.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
        patch.setattr(files, "point", full)
        toy_runs.run(tmp_path / "cut")
    folder = only_run(tmp_path / "cut")
    assert len(weft.load_run(folder).rounds) == 1
    assert not list(folder.rglob("*.tmp"))
    same(whole, weft.resume(folder, data=toy_runs.source()))


def damage_state(folder: Path) -> None:
    path = folder / "checkpoint" / "state.json"
    path.write_text(path.read_text().replace('\\"next\\": 1', '\\"next\\": 0'))


def cut_state(folder: Path) -> None:
    path = folder / "checkpoint" / "state.json"
    path.write_bytes(path.read_bytes()[:-20])


def other_format(folder: Path) -> None:
    path = folder / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def flip_a_bit(folder: Path) -> None:
    (path,) = (folder / "checkpoint").glob("server-*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def lose_tensors(folder: Path) -> None:
    for path in (folder / "checkpoint").glob("server-*"):
        path.unlink()


def cut_a_client(folder: Path) -> None:
    for path in (folder / "clients").iterdir():
        path.write_bytes(path.read_bytes()[:100])


def cut_rounds(folder: Path) -> None:
    path = folder / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def cut_settings(folder: Path) -> None:
    path = folder / "experiment.toml"
    path.write_text(path.read_text() + "\n= nothing")


DAMAGES = (damage_state, cut_state, other_format, flip_a_bit, lose_tensors, cut_a_client, cut_rounds, cut_settings)


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_run_is_refused_in_one_sentence_that_names_the_file(harm: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path, method="fedsa-lora", observer=StopAfter(0))
    harm(only_run(tmp_path))
    with pytest.raises(UserError) as refusal:
        weft.resume(only_run(tmp_path), data=toy_runs.source())
    sentence = str(refusal.value)
    assert str(only_run(tmp_path)) in sentence
    assert "\n" not in sentence.removesuffix("\n")
    assert any(word in sentence for word in ("damaged", "not valid TOML", "has format 99"))


def test_a_run_goes_on_with_its_own_data_only(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path, observer=StopAfter(0))
    with pytest.raises(UserError, match="data was given as an object: give it again"):
        weft.resume(only_run(tmp_path))
    with pytest.raises(UserError, match="the data have changed"):
        weft.resume(only_run(tmp_path), data=toy_runs.source(seed=1))


def test_a_run_goes_on_with_its_own_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.runs import prepare

    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path, observer=StopAfter(0))
    monkeypatch.setattr(prepare, "load_backbone", lambda name, **_: tiny.backbone("bert", num_hidden_layers=2))
    with pytest.raises(UserError, match="the backbone's weights are others"):
        weft.resume(only_run(tmp_path), data=toy_runs.source())


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path)
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    told = Told()
    again = weft.resume(run.folder, observer=told)
    assert "finished already" in told.sentences[0]
    assert again.summary == run.summary
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


def test_a_folder_without_a_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist: give the folder of a run"):
        weft.resume(tmp_path / "absent")
    with pytest.raises(UserError, match=UNBEGUN):
        weft.load_run(tmp_path)
    (tmp_path / "notes.txt").write_text("of something else")
    with pytest.raises(UserError, match=r"holds no experiment\.toml"):
        weft.load_run(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks of this kind")
def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    from weft.runs.directory import RunDirectory, locked

    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path, observer=StopAfter(0))
    folder = only_run(tmp_path)
    with locked(RunDirectory(folder)), pytest.raises(UserError, match="another process is working on"):
        weft.resume(folder, data=toy_runs.source())
    assert weft.resume(folder, data=toy_runs.source()).finished


@pytest.mark.slow
def test_three_real_kills_change_nothing(tmp_path: Path) -> None:
    table = toy_runs.source(60).train
    csv = "text,label\n" + "".join(
        f"{t},{toy_runs.CLASSES[y]}\n" for t, y in zip(table.texts, table.labels.tolist(), strict=True)
    )
    (tmp_path / "toy.csv").write_text(csv)
    common = {
        "method": "fedsa-lora",
        "model": tiny.folder("bert"),
        "data": str(tmp_path / "toy.csv"),
        "clients": 3,
        "rounds": 8,
        "partition": "iid",
        "precision": "float32",
        "device": "cpu",
        "parameters": {"steps": 2},
    }
    begin = "import sys, json, weft; weft.run(**json.loads(sys.argv[1]))"
    go_on = "import sys, weft; weft.resume(sys.argv[1])"

    def process(code: str, argument: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, argument], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        )

    folder = tmp_path / "cut" / "it"
    kills = 0
    running = process(begin, json.dumps(common | {"runs": str(folder.parent), "name": "it"}))
    for lines in (1, 3, 5):
        while running.poll() is None and len(toy_runs.finished_rounds(folder)) < lines:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
        running = process(go_on, str(folder))
    assert running.wait() == 0
    assert kills == 3
    assert process(begin, json.dumps(common | {"runs": str(tmp_path / "whole"), "name": "it"})).wait() == 0
    same(weft.load_run(tmp_path / "whole" / "it"), weft.load_run(folder))
