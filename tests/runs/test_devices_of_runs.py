"""Whole runs on simulated devices: the clock by hand, deadlines, resuming, and that nothing changes without them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import toy_runs
import weft
from toy_runs import Dies, Killed, Told
from weft.devices import Clock, Spent, Tick
from weft.engines import engine as engines
from weft.errors import UserError
from weft.report import page, terminal
from weft.runs.checkpoint import digest

FILE = """
[slow]
speed = 0.001
memory = 4
bandwidth = 1
downlink = 8
latency = 0.5
watts = 5
joules_per_byte = 1e-6
utilisation = 0.5

[fast]
speed = 1
memory = 8
bandwidth = 100
latency = 0.1
share = 2
"""
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 2, "batch": 4}, "rounds": 3, "report": False}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.fixture
def devices(tmp_path: Path) -> str:
    file = tmp_path / "devices.toml"
    file.write_text(FILE)
    return str(file)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Spent]]:
    """What the clock was told, round by round."""
    seen: list[dict[str, Spent]] = []
    own = Clock.tick

    def tick(self: Clock, spent: dict[str, Spent], late: list[str]) -> Tick:
        seen.append(spent)
        return own(self, spent, late)

    monkeypatch.setattr(Clock, "tick", tick)
    return seen


def test_a_run_by_hand(tmp_path: Path, devices: str, spent: list[dict[str, Spent]]) -> None:
    run = toy_runs.run(tmp_path, devices=devices, **SMALL)
    assert len(spent) == len(run.rounds) == 3
    now = 0.0
    for line, each in zip(run.rounds, spent, strict=True):
        assert sum(s.flops for s in each.values()) == line["work"]["forward"] + line["work"]["backward"] > 0
        for way, name in (("down", "down"), ("up", "up")):
            billed = sum(line["bytes"][phase][way]["wire"] for phase in ("setup", "train") if phase in line["bytes"])
            registered = 0 if line["round"] else sum(getattr(s, name) for s in each.values()) - billed
            assert sum(getattr(s, name) for s in each.values()) - registered == billed
        kinds = [["slow", "fast"][position % 2 and 1] for position in range(3)]
        assert set(kinds) <= {"slow", "fast"}
        dealt = weft.experiment.handed.devices_of(weft.experiment.resolve({"devices": devices}).experiment)
        seconds, joules = [], 0.0
        for position, client in enumerate(sorted(each)):
            s, d = each[client], dealt(position)
            speed = {"slow": 0.5e9, "fast": 0.3e12}[d.name]
            down, up = {"slow": (1e6, 1.25e5), "fast": (1.25e7, 1.25e7)}[d.name]
            seconds.append({"slow": 0.5, "fast": 0.1}[d.name] + s.flops / speed + s.down / down + s.up / up)
            joules += {"slow": 5, "fast": 10}[d.name] * s.flops / speed + (1e-6 * (s.down + s.up) if d.name == "slow" else 0)
        now += max(seconds)
        assert line["clock"]["seconds"] == pytest.approx(max(seconds))
        assert line["clock"]["now"] == pytest.approx(now)
        assert line["clock"]["joules"] == pytest.approx(joules)
    found = run.summary["clock"]
    assert (found["seconds"], found["late"]) == (run.rounds[-1]["clock"]["now"], 0)
    assert run.records()[-1]["clock_now"] == found["seconds"]


def test_without_devices_a_run_says_nothing_of_them_and_with_them_it_learns_the_same(tmp_path: Path, devices: str) -> None:
    plain, timed = (toy_runs.run(tmp_path / n, name=n, **SMALL, **more) for n, more in (("a", {}), ("b", {"devices": devices})))
    assert set(plain.rounds[0]["work"]) == {"steps", "examples"}
    assert "clock" not in plain.rounds[0]
    assert "clock" not in plain.summary
    assert "clock_now" not in plain.records()[0]
    assert digest(plain.folder)["server"] == digest(timed.folder)["server"]
    apart = ("clock", "work", "seconds", "memory")
    for mine, theirs in zip(plain.rounds, timed.rounds, strict=True):
        assert {n: v for n, v in mine.items() if n not in apart} == {n: v for n, v in theirs.items() if n not in apart}
    assert not list((plain.folder / "clients").iterdir())


def test_a_run_that_was_killed_has_the_same_clock(tmp_path: Path, devices: str) -> None:
    about = SMALL | {"devices": devices, "method": "fedsa-lora"}
    whole = toy_runs.run(tmp_path, name="whole", **about)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="killed", observer=Dies(after=1), **about)
    resumed = weft.resume(tmp_path / "killed", data=toy_runs.source())
    assert digest(resumed.folder) == digest(whole.folder)
    assert resumed.rounds[-1]["clock"] == whole.rounds[-1]["clock"]


def test_packs_of_any_size_have_the_same_clock(tmp_path: Path, devices: str) -> None:
    one, three = (toy_runs.run(tmp_path, name=str(k), devices=devices, pack=k, **SMALL) for k in (1, 3))
    assert [line["clock"] for line in one.rounds] == [line["clock"] for line in three.rounds]


def late_one(folder: Path, devices: str) -> tuple[str, float]:
    """The client that takes longest, and a deadline that it alone misses."""
    line = toy_runs.run(folder, name="probe", devices=devices, **SMALL).rounds[0]
    return line["clock"]["slowest"], line["clock"]["seconds"] * 0.8


def test_whoever_misses_the_deadline_leaves_what_one_leaves_that_fails(
    tmp_path: Path, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    who, deadline = late_one(tmp_path, devices)
    about = SMALL | {"method": "fedsa-lora", "pack": 1}  # so that packs are alike with one client less
    late = toy_runs.run(tmp_path, name="late", devices=devices, deadline=deadline, **about)
    assert [line["clock"]["late"] for line in late.rounds] == [[who]] * 3 == [line["lost"] for line in late.rounds]
    assert [line["clock"]["seconds"] for line in late.rounds] == [deadline] * 3
    assert late.summary["clock"]["late"] == 3
    monkeypatch.setattr(engines, "drops_out", lambda _seed, client, _t, _chance: client == who)
    failed = toy_runs.run(tmp_path, name="failed", devices=devices, **about)
    mine, theirs = digest(late.folder), digest(failed.folder)
    same = [n for n in mine if not n.startswith("round")]
    assert len(same) == 3  # the server, and the two clients that have something to remember
    assert {n: mine[n] for n in same} == {n: theirs[n] for n in same}
    assert [line["loss"] for line in late.rounds] == [line["loss"] for line in failed.rounds]
    up = [line["bytes"]["train"]["up"]["messages"] for line in (late.rounds[0], failed.rounds[0])]
    assert up == [3, 2]  # what a late client has sent is billed


def test_a_deadline_that_nobody_meets_is_one_sentence(tmp_path: Path, devices: str) -> None:
    with pytest.raises(UserError, match=r"^no client of the cohort is done by the deadline of 0\.01 s: .*\.$"):
        toy_runs.run(tmp_path, devices=devices, deadline=0.01, **SMALL)


def test_devices_without_the_memory_take_no_part(tmp_path: Path) -> None:
    file = tmp_path / "tight.toml"
    file.write_text(FILE.replace("memory = 4", "memory = 0.0001"))
    told = Told()
    run = toy_runs.run(tmp_path, name="tight", devices=str(file), observer=told, **SMALL)
    (said,) = [s for s in told.sentences if "take no part" in s]
    out = {"c0", "c1", "c2"} - set(run.rounds[0]["cohort"])
    assert said.startswith(f"{len(out)} client")
    assert "slow" in said
    assert 0 < len(out) < 3
    assert all(line["cohort"] == run.rounds[0]["cohort"] for line in run.rounds)
    file.write_text(FILE.replace("memory = 4", "memory = 0.0001").replace("memory = 8", "memory = 0.0001"))
    with pytest.raises(UserError, match=r"^no device of --devices holds .*: give devices with more memory.*\.$"):
        toy_runs.run(tmp_path, name="none", devices=str(file), **SMALL)


def test_baselines_on_the_same_devices_and_a_probe_before(tmp_path: Path, devices: str) -> None:
    more = SMALL | {"baselines": ["local", "probe"], "start_head": "probe", "probe_rounds": 2}
    run = toy_runs.run(tmp_path, devices=devices, **more)
    setup = [json.loads(line) for line in (run.folder / "setup" / "rounds.jsonl").read_text().splitlines()]
    assert run.summary["clock"]["setup_seconds"] == setup[-1]["clock"]["now"] > 0
    assert "clock" not in run.summary["baselines"]["local"]
    assert run.summary["baselines"]["probe"]["clock"]["seconds"] == setup[-1]["clock"]["now"]
    assert setup[1]["work"]["forward"] < setup[0]["work"]["forward"]  # features are computed once


def test_tables_and_the_page_tell_it(tmp_path: Path, devices: str) -> None:
    run = toy_runs.run(tmp_path, name="timed", devices=devices, **SMALL)
    out = Console(width=120, record=True, file=io.StringIO())
    terminal.closing(out, run.summary, run.rounds)
    text = " ".join(out.export_text().split())
    assert f"time on these devices {weft.devices.span(run.summary['clock']['seconds'])}" in text
    assert "by a simulated clock, of all rounds" in text
    html = page.document.html(page.shown.shown([run]))
    for words in ("by simulated time", "by joule", "time on devices, s", "energy on devices, J"):
        assert words in html
    plain = page.document.html(page.shown.shown([toy_runs.run(tmp_path, name="plain", **SMALL)]))
    assert "simulated" not in plain
    assert "on devices" not in plain
