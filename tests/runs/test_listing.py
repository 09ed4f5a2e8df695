"""Lists of runs say how far each came and why it stands, whatever is broken, and remove what was asked for alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import command_line
import toy_runs
from command_line import refused, weft
from toy_runs import Dies, Killed
from weft.errors import UserError
from weft.runs import directory, listing
from weft.runs.directory import RunDirectory

Capture = pytest.CaptureFixture[str]
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of two methods, and one that was killed after its first round of three."""
    runs = tmp_path_factory.mktemp("listing") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        toy_runs.run(runs, name="one", seed=1, **SMALL)
        toy_runs.run(runs, name="two", method="fedbf", **SMALL)
        with pytest.raises(Killed):
            toy_runs.run(runs, name="cut", observer=Dies(0), **SMALL | {"rounds": 3})
    return runs


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy, to break things in."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def found(root: Path) -> dict[str, listing.Listed]:
    return {run.name: run for run in (listing.listed(path, root) for path in listing.folders(root))}


def test_each_is_listed_with_its_settings_and_how_far_it_came(made: Path) -> None:
    all_ = found(made)
    assert list(all_) == ["cut", "one", "two"]
    one, cut = all_["one"], all_["cut"]
    summary = json.loads((made / "one" / "summary.json").read_text())
    assert (one.method, one.data, one.seed, one.state, one.why) == ("fedit", "toy", 1, "finished", "")
    assert (one.rounds, one.planned, one.metric, one.value) == (2, 2, "accuracy", summary["headline"]["value"])
    assert one.bytes_up == sum(phase["up"]["wire"] for phase in summary["bytes"].values())
    assert one.started == summary["started"]
    assert (cut.rounds, cut.planned, cut.state) == (1, 3, "unfinished")
    assert cut.why == f"stopped after 1 of 3 rounds: weft resume {made / 'cut'} goes on."
    (line,) = [json.loads(x) for x in toy_runs.finished_rounds(made / "cut")]
    assert cut.bytes_up == sum(phase["up"]["wire"] for phase in line["bytes"].values())
    assert cut.value == next(e["value"] for e in line["evaluations"] if e["people"] == "global test")


def test_lines_that_no_checkpoint_vouches_for_do_not_count(runs: Path) -> None:
    with open(runs / "cut" / "rounds.jsonl", "ab") as f:
        f.write(b'{"format": 1, "round": 1, "half')
    assert found(runs)["cut"].rounds == 1


@pytest.mark.parametrize("broken", ["summary", "rounds", "state", "shape", "text", "nothing", "bytes", "nested"])
def test_one_broken_folder_never_stops_the_list(broken: str, runs: Path, capsys: Capture) -> None:
    cut = runs / "cut"
    summary = json.loads((cut / "summary.json").read_text())
    if broken == "summary":
        (cut / "summary.json").write_text("{")
    elif broken == "rounds":
        (cut / "rounds.jsonl").write_text("")
    elif broken == "state":
        (cut / "checkpoint" / "state.json").write_text('{"format": 1, "sha256": "no", "state": "{}"}')
    elif broken == "shape":
        (cut / "summary.json").write_text(json.dumps(summary | {"method": {}}))
    elif broken == "text":
        two = json.loads((cut / "rounds.jsonl").read_text())
        two["evaluations"][0]["value"] = "x" * (len(str(two["evaluations"][0]["value"])) - 2)
        data = json.dumps(two).encode() + b"\n"
        length = (cut / "rounds.jsonl").stat().st_size
        (cut / "rounds.jsonl").write_bytes(data[:-1] + b" " * (length - len(data)) + b"\n")
    elif broken == "nothing":
        (cut / "summary.json").unlink()
    elif broken == "bytes":
        (cut / "summary.json").write_bytes(b"\xff\xfe")
    else:
        (cut / "summary.json").write_text("[" * 100_000)
    all_ = found(runs)
    assert list(all_) == ["cut", "one", "two"]
    assert all_["cut"].state == "damaged"
    assert "cut" in all_["cut"].why
    assert all_["cut"].why[-1] == "."
    assert all_["one"].state == all_["two"].state == "finished"
    for order in ("name", "when", "accuracy"):
        got = weft(capsys, "runs", runs, "--sort", order)
        assert got.code == 0
        assert all(name in got.out for name in all_)


def test_a_run_of_another_version_says_so(runs: Path) -> None:
    summary = json.loads((runs / "one" / "summary.json").read_text())
    (runs / "one" / "summary.json").write_text(json.dumps(summary | {"format": 2}))
    one = found(runs)["one"]
    assert one.state == "other format"
    assert "has format 2" in one.why


def test_runs_in_folders_below_are_found_and_those_within_a_run_are_the_run_s_own(runs: Path) -> None:
    (runs / "sweep").mkdir()
    (runs / "one").rename(runs / "sweep" / "one")
    shutil.copytree(runs / "two", runs / "two" / "baselines" / "local")
    (runs / "round").symlink_to(runs)
    (runs / "linked").symlink_to(runs / "two")
    (runs / "notes").mkdir()
    (runs / "notes.txt").touch()
    assert list(found(runs)) == ["cut", "linked", "sweep/one", "two"]


def test_a_run_that_another_process_is_at_is_running_and_asking_keeps_no_one_out(runs: Path) -> None:
    cut = RunDirectory(runs / "cut")
    with directory.locked(cut):
        assert found(runs)["cut"].state == "running"
        assert found(runs)["cut"].why == ""
    assert not directory.in_use(cut)
    with directory.locked(cut):
        pass


def test_who_begins_a_run_while_somebody_asks_whether_it_is_in_use_is_let_in(runs: Path) -> None:
    """A list holds a shared lock for a moment."""
    import fcntl
    import os
    import threading

    handle = os.open(runs / "cut", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    threading.Timer(directory.MOMENT / 5, os.close, [handle]).start()
    with directory.locked(RunDirectory(runs / "cut")):
        pass


def test_filters_and_orders(made: Path, capsys: Capture) -> None:
    def names(*more: object) -> list[str]:
        return [run["name"] for run in json.loads(weft(capsys, "runs", made, "--json", *more).out)]

    assert names("--method", "fedbf") == ["two"]
    assert names("--data", "TO") == ["cut", "one", "two"]
    assert names("--data", "pydocs") == []
    assert names("--finished") == ["one", "two"]
    assert names("--unfinished") == ["cut"]
    when = {run.name: run.started for run in found(made).values()}
    assert names("--sort", "when") == sorted(when, key=lambda n: when[n] or "", reverse=True)
    value = {run.name: run.value or 0.0 for run in found(made).values()}
    assert [value[n] for n in names("--sort", "accuracy")] == sorted(value.values(), reverse=True)
    refused(weft(capsys, "runs", made, "--finished", "--unfinished"), "both finished and unfinished")
    refused(weft(capsys, "runs", made / "nowhere"), "nowhere is no folder")


def test_where_less_is_better_the_least_comes_first_and_what_has_no_score_last() -> None:
    def run(name: str, metric: str | None, value: float | None) -> listing.Listed:
        return listing.Listed(name, name, metric=metric, value=value)

    some = [run("a", None, None), run("b", "perplexity", 9.0), run("c", "perplexity", 3.0), run("d", "accuracy", 0.1)]
    assert [one.name for one in listing.in_order([*some, run("e", "accuracy", 0.5)], "accuracy")] == ["e", "d", "c", "b", "a"]


def test_the_list_fits_a_wide_terminal_and_needs_no_torch(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    got = weft(capsys, "runs", made)
    rows = {line.split()[0]: line for line in got.out.splitlines() if line.split()}
    assert rows["one"].split()[1:3] == ["fedit", "toy"]
    assert "2/2" in rows["one"]
    assert "finished" in rows["one"]
    assert "1/3" in rows["cut"]
    assert "weft resume" in rows["cut:"]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = weft(capsys, "runs", made).out.splitlines()
    assert max(map(len, narrow[:5])) <= 80
    assert [line.split()[:2] for line in narrow[2:5]] == [["cut", "1/3"], ["one", "2/2"], ["two", "2/2"]]
    script = (
        "import sys\nfrom weft.cli import main\n"
        "try:\n    main(['runs', sys.argv[1]])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(made)], check=True, capture_output=True)


# removing -------------------------------------------------------------------------------------------------------------


def test_remove_takes_the_named_runs_and_nothing_else(runs: Path, capsys: Capture) -> None:
    got = weft(capsys, "runs", runs, "--remove", "one", "--remove", "cut/", "--yes")
    assert (got.code, got.out) == (0, "Removed 2 runs.\n")
    assert [p.name for p in runs.iterdir()] == ["two"]


def test_it_asks_first_and_where_nobody_can_answer_it_refuses(
    runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(weft(capsys, "runs", runs, "--remove", "one"), "nobody is there to ask", "--yes")
    assert (runs / "one").is_dir()
    refused(weft(capsys, "runs", runs, "--yes"), "leave it out")
    from weft.cli import runs as module

    answers = iter([False, True])
    monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.typer, "confirm", lambda text: next(answers))
    assert "Nothing was removed." in weft(capsys, "runs", runs, "--remove", "one").out
    assert (runs / "one").is_dir()
    assert "Removed 1 run." in weft(capsys, "runs", runs, "--remove", "one").out
    assert not (runs / "one").exists()


def test_what_is_no_run_lies_elsewhere_or_is_in_use_stays_and_so_does_all_else(runs: Path, tmp_path: Path) -> None:
    (runs / "mine").mkdir()
    (runs / "mine" / "thesis.txt").touch()
    outside = Path(shutil.copytree(runs / "one", tmp_path / "outside"))
    (runs / "link").symlink_to(outside)
    shutil.copytree(runs / "two", runs / "two" / "baselines" / "local")
    for name, words in {
        "mine": "is no run",
        "on": 'does not exist, so nothing was removed. Did you mean "one"?',
        "../outside": "lies outside",
        str(outside): "lies outside",
        "link": "lies outside",
        ".": "lies outside",
        "two/baselines/local": "is no run",
    }.items():
        with pytest.raises(UserError, match=words.replace(".", r"\.").replace("?", r"\?")):
            listing.to_remove(runs, ["one", name])
    with directory.locked(RunDirectory(runs / "two")):
        with pytest.raises(UserError, match="another process is working on"):
            listing.to_remove(runs, ["one", "two"])
        with pytest.raises(UserError, match="another process is working on"):
            listing.remove([runs / "one", runs / "two"])
    assert (runs / "one" / "summary.json").is_file()
    assert (outside / "summary.json").is_file()
    assert (runs / "mine" / "thesis.txt").is_file()


def test_a_damaged_run_can_be_removed(runs: Path, capsys: Capture) -> None:
    (runs / "cut" / "summary.json").write_text("{")
    assert weft(capsys, "runs", runs, "--remove", "cut", "--yes").code == 0
    assert not (runs / "cut").exists()


def test_more_rounds_that_were_edited_in_are_planned_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    import weft as library

    rows = command_line.table(tmp_path / "rows.csv")
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "runs", data=str(rows), observer=Dies(0), **SMALL)
    (folder,) = (tmp_path / "runs").iterdir()
    file = folder / "experiment.toml"
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 3", 1))
    library.resume(folder, quiet=True)
    (run,) = found(tmp_path / "runs").values()
    assert (run.rounds, run.planned) == (3, 3)
