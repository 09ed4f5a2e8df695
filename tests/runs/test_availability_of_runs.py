"""Whole runs whose clients come and go: who is drawn, who is lost, when the clock moves on, and what a kill or a pack changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import command_line
import toy_runs
import weft
from toy_runs import Dies, Killed, Told
from weft.devices import Clock
from weft.errors import UserError
from weft.runs.checkpoint import digest

KIND = "speed = 0.001\nmemory = 8\nbandwidth = 1\nlatency = 0.5\nutilisation = 0.5\n"
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 2, "batch": 4}, "rounds": 4, "report": False}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.fixture
def devices(tmp_path: Path) -> str:
    file = tmp_path / "devices.toml"
    file.write_text(f'[night]\n{KIND}available = "22-6"\n[day]\n{KIND}available = "8-20"\n')
    return str(file)


def kinds(devices: str) -> list[str]:
    at = weft.experiment.handed.devices_of(weft.experiment.resolve({"devices": devices}).experiment)
    return [at(position).name for position in range(3)]


def trace(folder: Path, *lines: str) -> str:
    file = folder / "trace.csv"
    file.write_text("\n".join(("client,start,end", *lines)) + "\n")
    return str(file)


def test_who_is_not_available_is_not_drawn_and_the_clock_moves_on(tmp_path: Path, devices: str) -> None:
    by_kind = {kind: [f"c{i}" for i, k in enumerate(kinds(devices)) if k == kind] for kind in ("night", "day")}
    assert all(by_kind.values())
    told = Told()
    run = toy_runs.run(tmp_path, name="six", devices=devices, clock_hour=6, observer=told, **SMALL)
    assert all(line["cohort"] == by_kind["day"] for line in run.rounds)
    assert [line["clock"]["waited"] for line in run.rounds] == [7200, 0, 0, 0]
    assert "nobody is available at 06:00 of day 1: the clock moves on by 2 h, to 08:00 of day 1." in told.sentences
    assert run.rounds[0]["clock"]["now"] == 7200 + run.rounds[0]["clock"]["seconds"]
    assert run.summary["clock"]["waited"] == 7200
    night = toy_runs.run(tmp_path, name="midnight", devices=devices, **SMALL)
    assert all(line["cohort"] == by_kind["night"] for line in night.rounds)
    everybody = toy_runs.run(tmp_path, name="always", devices=devices, availability="always", **SMALL)
    assert all(line["cohort"] == ["c0", "c1", "c2"] for line in everybody.rounds)


def test_a_sample_is_filled_from_those_who_are_there(tmp_path: Path) -> None:
    about = SMALL | {"devices": "laptop", "clients": 6, "participation": 0.5, "data": toy_runs.source(120)}
    spans = [f"c{i},0,{1e9 if i % 2 else 1e-9}" for i in range(6)]
    file = trace(tmp_path, *spans)
    run = toy_runs.run(tmp_path, name="half", availability=file, **about)
    assert all(set(line["cohort"]) == {"c1", "c3", "c5"} for line in run.rounds[1:])
    free, always = (
        toy_runs.run(tmp_path, name=n, **about, **more) for n, more in (("free", {}), ("all", {"availability": "always"}))
    )
    assert [line["cohort"] for line in free.rounds] == [line["cohort"] for line in always.rounds]


def test_whoever_goes_away_leaves_what_one_leaves_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.engines import engine as engines

    about = SMALL | {"devices": "laptop", "method": "fedsa-lora", "pack": 1, "rounds": 1}
    file = trace(tmp_path, "c0,0,1000", "c1,0,0.05", "c2,0,1000")  # a laptop's latency alone is 0.1 s
    gone = toy_runs.run(tmp_path, name="gone", availability=file, **about)
    line = gone.rounds[0]
    assert (line["cohort"], line["lost"], line["clock"]["gone"]) == (["c0", "c1", "c2"], ["c1"], ["c1"])
    assert gone.summary["clock"]["gone"] == 1
    monkeypatch.setattr(engines, "drops_out", lambda _seed, client, _t, _chance: client == "c1")
    failed = toy_runs.run(tmp_path, name="failed", **about)
    mine, theirs = digest(gone.folder), digest(failed.folder)
    same = [n for n in mine if not n.startswith("round")]
    assert len(same) == 3
    assert {n: mine[n] for n in same} == {n: theirs[n] for n in same}
    assert line["loss"] == failed.rounds[0]["loss"]


def coming_and_going(folder: Path) -> dict[str, Any]:
    """Clients that are away for a while each, and dropouts beside."""
    file = trace(folder, "c0,0,0.15", "c0,1.05,1000", "c1,0.1,0.3", "c1,3,1000", "c2,1,1.25")
    return SMALL | {"devices": "laptop", "availability": file, "dropout": 0.2, "method": "fedsa-lora", "rounds": 8}


def test_a_run_that_was_killed_has_the_same_cohorts(tmp_path: Path) -> None:
    about = coming_and_going(tmp_path)
    whole = toy_runs.run(tmp_path, name="whole", **about)
    assert {tuple(line["cohort"]) for line in whole.rounds} > {("c0",)}
    assert sum(line["clock"]["waited"] for line in whole.rounds) > 0
    for after in (1, 3):
        with pytest.raises(Killed):
            toy_runs.run(tmp_path, name=f"killed-{after}", observer=Dies(after=after), **about)
        resumed = weft.resume(tmp_path / f"killed-{after}", data=toy_runs.source())
        assert digest(resumed.folder) == digest(whole.folder)


def test_its_files_are_found_from_anywhere(tmp_path: Path, devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace(tmp_path, "c0,0,1000")
    monkeypatch.chdir(tmp_path)
    about = SMALL | {"devices": "devices.toml", "availability": "trace.csv"}
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="killed", observer=Dies(), **about)
    monkeypatch.chdir("/")
    resumed = weft.resume(tmp_path / "killed", data=toy_runs.source())
    assert [line["cohort"] for line in resumed.rounds] == [["c0"]] * 4


def test_packs_of_any_size_have_the_same_cohorts(tmp_path: Path) -> None:
    about = coming_and_going(tmp_path)
    one, three = (toy_runs.run(tmp_path, name=str(k), pack=k, **about) for k in (1, 3))
    for name in ("clock", "cohort", "lost"):
        assert [line[name] for line in one.rounds] == [line[name] for line in three.rounds]


def test_a_run_ends_in_good_order_when_nobody_comes_any_more(tmp_path: Path) -> None:
    told = Told()
    about = SMALL | {"devices": "laptop", "rounds": 9, "eval_every": 0, "observer": told}
    file = trace(tmp_path, "c0,0,0.25", "c1,0,0.25", "c2,0,0.25")
    run = toy_runs.run(tmp_path, availability=file, **about)
    assert 1 <= len(run.rounds) < 9
    assert run.rounds[-1]["evaluations"]
    assert run.summary["stopped"]["why"] == "nobody who could take part is available after 00:00 of day 1"
    assert run.summary["finished"]


def test_a_run_of_whom_nobody_is_ever_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "first", lambda *_: math.inf)
    with pytest.raises(UserError, match=r"^no client that could take part is ever available: .*\.$"):
        toy_runs.run(tmp_path, devices="laptop", **SMALL)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"availability": "always"}, r"availability is always, but no device keeps the time"),
        ({"clock_hour": 3.0}, r"clock_hour is 3, but no device keeps the time"),
        ({"devices": "laptop", "availability": "night"}, r'availability is "night": give always, or a \.csv file'),
        ({"devices": "laptop", "availability": "none.csv"}, r"the trace none\.csv can't be read"),
    ],
)
def test_settings_that_cannot_be(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{words}.*\.$"):
        toy_runs.run(tmp_path, **SMALL, **more)


def test_a_trace_of_other_clients_is_refused_before_a_round(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'has the client "c7", which is none of this run'):
        toy_runs.run(tmp_path, devices="laptop", availability=trace(tmp_path, "c7,0,9"), **SMALL)


@pytest.mark.parametrize(
    ("trace", "words"),
    [("client,start,end\nzz,0,5\n", 'has the client "zz", which is none of this run'), (None, "no device of --devices")],
)
def test_a_rehearsal_refuses_what_the_run_would(
    trace: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("trace.csv" if trace else "small.toml")
    file.write_text(trace or "[a]\nspeed = 1\nmemory = 1e-6\nbandwidth = 1\n")
    more = ("--devices", "phones", "--availability", file) if trace else ("--devices", file)
    for dry in ((), ("--dry-run",)):
        assert words in command_line.weft(capsys, *command_line.small(tmp_path, *more, *dry)).err
