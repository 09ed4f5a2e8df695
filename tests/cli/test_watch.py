"""``weft watch`` follows a run by its folder, from another process: it writes nothing, holds no lock, and ends with the run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import toy_runs
from command_line import flowing, refused, weft
from patience import patience
from toy_runs import Dies, Killed
from weft.cli import watch as module
from weft.errors import UserError
from weft.report import watched as frames
from weft.report.watched import duration, frame, seconds_left, sparkline
from weft.runs.directory import RunDirectory, locked
from weft.runs.glance import Glance, glance

Capture = pytest.CaptureFixture[str]
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of five, then killed."""
    runs = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        with pytest.raises(Killed):
            toy_runs.run(runs, name="cut", observer=Dies(1), **SMALL | {"rounds": 5})
    return runs / "cut"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(runs, name="done", **SMALL).folder


def state(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def shown(now: Glance, clock: float = 0.0, ascii: bool = False) -> str:
    screen = Console(width=100)
    with screen.capture() as got:
        screen.print(frame(now, clock, ascii))
    return flowing(got.get())


def test_once_prints_how_a_run_stands_and_leaves_it_as_it_was_even_while_it_is_locked(cut: Path, capsys: Capture) -> None:
    before = state(cut)
    with locked(RunDirectory(cut)):
        got = weft(capsys, "watch", cut, "--once")
    assert got.code == 0
    text = flowing(got.out)
    assert "2 of 5" in text
    lines = [json.loads(line) for line in toy_runs.finished_rounds(cut)]
    assert f"{lines[-1]['loss']:.4g}" in text
    top = next(e["value"] for e in lines[-1]["evaluations"] if e["people"] == "global test")
    assert f"{top:.4g}, best" in text
    assert "fedit" in text
    assert state(cut) == before


def test_what_no_checkpoint_vouches_for_is_not_shown(cut: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cut, tmp_path / "copy"))
    with open(copy / "rounds.jsonl", "ab") as f:
        f.write(b'{"round": 2, "half a li')
    assert len(glance(copy).rounds) == 2


def test_time_left_is_that_of_the_latest_rounds_and_of_their_evaluations() -> None:
    def now(seconds: list[float], planned: int, finished: bool = False) -> Glance:
        rounds = [{"round": i, "seconds": {"training": s, "evaluation": 1.0}} for i, s in enumerate(seconds)]
        return Glance(
            Path("x"), {"finished": finished, "planned": planned, "method": {"slug": "fedit"}, "bytes": {}}, rounds, saved=5.0
        )

    assert seconds_left(now([99.0, 1.0, 1.0, 1.0, 1.0, 1.0], 10)) == 4 * 2.0
    assert seconds_left(now([], 10)) is None
    assert "time left about 8 s" in shown(now([1.0] * 6, 10), 6.0)
    assert "the last round was saved 1 s ago" in shown(now([1.0] * 6, 10), 6.0)
    assert "weft runs says whether anybody is at it" in shown(now([1.0] * 6, 10), 500.0)
    assert "all rounds are played" in shown(now([1.0] * 10, 10), 6.0)
    assert "time left" not in shown(now([1.0] * 6, 10, finished=True), 6.0)


def test_a_sparkline_goes_from_the_least_to_the_greatest_of_the_last_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([9.0, *range(40)], frames.PLAIN)[0] == "_"
    assert len(sparkline(list(range(100)))) == frames.WIDTH
    assert [duration(s) for s in (0.4, 59.6, 185, 7800)] == ["0 s", "1 min 0 s", "3 min 5 s", "2 h 10 min"]


def test_before_anything_is_written_and_in_set_up_it_waits(tmp_path: Path, done: Path, capsys: Capture) -> None:
    got = weft(capsys, "watch", tmp_path, "--once")
    assert (got.code, "nothing has been written yet" in got.out) == (0, True)
    (tmp_path / "summary.json.tmp").write_text("{")
    assert weft(capsys, "watch", tmp_path, "--once").code == 0
    about = json.loads((done / "summary.json").read_text()) | {"finished": False}
    (tmp_path / "summary.json").write_text(json.dumps(about))
    assert "set-up" in weft(capsys, "watch", tmp_path, "--once").out
    shutil.copytree(done / "checkpoint", tmp_path / "setup" / "checkpoint")
    shutil.copy(done / "rounds.jsonl", tmp_path / "setup")
    assert "2 rounds of the head's own training" in weft(capsys, "watch", tmp_path, "--once").out


def test_it_follows_until_the_run_is_finished_and_survives_a_folder_that_is_moved_under_it(
    cut: Path, done: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 0.2)
    run = tmp_path / "run"
    run.mkdir()

    def play() -> None:
        for after in (cut, done):
            time.sleep(0.5)
            away = tmp_path / "away"
            run.rename(away)
            time.sleep(0.05)
            shutil.rmtree(away)
            shutil.copytree(after, tmp_path / "next")
            (tmp_path / "next").rename(run)

    playing = threading.Thread(target=play)
    playing.start()
    got = weft(capsys, "watch", run)
    playing.join()
    assert got.code == 0
    assert "finished" in got.out
    rows = [line.split()[0] for line in got.out.split(str(run))[0].splitlines() if line.strip()]
    assert rows == ["round", "1", "2"]  # each once, however often it looked


def test_a_look_that_fails_for_a_moment_is_taken_again(done: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([True] * (module.TRIES - 1))

    def sometimes(folder: Path) -> Glance:
        if next(failures, False):
            raise UserError(f"can't read {folder}.")
        return glance(folder)

    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr("weft.runs.glance.glance", sometimes)
    assert weft(capsys, "watch", done, "--once").code == 0


def test_at_a_terminal_the_frame_is_drawn_over_until_the_end(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, width=90, legacy_windows=False)
    monkeypatch.setattr(module, "out", lambda: screen)
    with screen.capture() as got:
        module.watch(done)
    assert "2 of 2" in got.get()


def test_what_is_no_run_and_what_is_damaged_is_said_in_a_sentence(
    cut: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    refused(weft(capsys, "watch", tmp_path / "nowhere"), "does not exist")
    (tmp_path / "thesis.txt").touch()
    refused(weft(capsys, "watch", tmp_path), "holds no run", f"weft runs {tmp_path}")
    refused(weft(capsys, "watch", tmp_path / "thesis.txt"), "is a file")
    copy = Path(shutil.copytree(cut, tmp_path / "copy"))
    (copy / "rounds.jsonl").write_text("")
    refused(weft(capsys, "watch", copy), "is damaged")


def test_a_real_run_in_another_process_is_followed_to_its_end(tmp_path: Path) -> None:
    from command_line import small

    script = "import sys; from weft.cli import main; main(sys.argv[1:])"
    run = [sys.executable, "-c", script, *map(str, small(tmp_path, "--name", "real", "--quiet", "--rounds", 3))]
    playing = subprocess.Popen(run, stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs" / "real"
    deadline = time.monotonic() + patience(120)
    while not folder.is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watching = [sys.executable, "-c", script, "watch", str(folder)]
    got = subprocess.run(watching, capture_output=True, text=True, timeout=patience(120))
    assert got.returncode == 0, got.stderr
    assert "3 of 3" in got.stdout
    assert playing.wait(timeout=patience(60)) == 0
