"""Whole runs that draw clients by carbon or battery, and end with their budgets; what a kill or a pack changes."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import toy_runs
import weft
from toy_runs import Dies, Killed
from weft.errors import UserError
from weft.report import page, terminal
from weft.runs.checkpoint import digest

KIND = "speed = 0.001\nmemory = 8\nbandwidth = 1\nlatency = 0.5\nutilisation = 0.5\nwatts = 5\n"
SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 2, "batch": 4}, "rounds": 4, "report": False}
CHOOSES: dict[str, Any] = SMALL | {"clients": 6, "participation": 0.34, "cohorts": "carbon", "grids": "solar,coal-wind"}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.fixture
def devices(tmp_path: Path) -> str:
    file = tmp_path / "devices.toml"
    file.write_text(f'[sunny]\n{KIND}region = "solar"\n[windy]\n{KIND}region = "coal-wind"\n')
    return str(file)


def regions(devices: str, clients: int) -> dict[str, str]:
    x = weft.experiment.resolve({"devices": devices, "grids": "solar,coal-wind"}).experiment
    at = weft.experiment.handed.devices_of(x)
    dealt = weft.experiment.handed.grids_of(x, {f"c{i}": at(i) for i in range(clients)})
    return {client: grid.name for client, grid in dealt.items()}


def test_the_cheapest_are_drawn_and_everybody_in_the_end(tmp_path: Path, devices: str) -> None:
    where = regions(devices, 6)
    assert Counter(where.values()) == {"solar": 3, "coal-wind": 3}
    about = CHOOSES | {"devices": devices, "data": toy_runs.source(120), "rounds": 8}
    greedy = toy_runs.run(tmp_path, name="greedy", carbon_fairness=0.0, **about)
    assert {where[c] for line in greedy.rounds[:1] for c in line["cohort"]} == {"solar"}
    assert all(len(line["cohort"]) == 2 for line in greedy.rounds)
    fair = toy_runs.run(tmp_path, name="fair", carbon_fairness=1.0, **about)
    turns = Counter(c for line in fair.rounds for c in line["cohort"])
    assert set(turns) == set(where)
    assert min(turns.values()) >= 2  # of 16 turns for six
    assert min(Counter(c for line in greedy.rounds for c in line["cohort"]).get(c, 0) for c in where) == 0
    lot = toy_runs.run(tmp_path, name="lot", **(about | {"cohorts": "random"}))
    grams = [run.summary["clock"]["grams"] for run in (greedy, fair, lot)]
    assert 0 < grams[0] < min(grams[1:])
    assert grams[0] == pytest.approx(sum(line["clock"]["grams"] for line in greedy.rounds))


def test_debts_do_not_all_fall_due_in_the_same_rounds(tmp_path: Path, devices: str) -> None:
    about = CHOOSES | {"devices": devices, "data": toy_runs.source(120), "rounds": 8, "carbon_fairness": 0.5}
    run = toy_runs.run(tmp_path, **about)
    where = regions(devices, 6)
    by_wind = [sum(where[c] == "coal-wind" for c in line["cohort"]) for line in run.rounds]
    first = next(t for t, drawn in enumerate(by_wind) if drawn)
    assert 0 < first < 6  # the sun's are cheaper; from nothing, with a sixth of a turn more in each round, none is due before
    assert len([drawn for drawn in by_wind if drawn]) >= 2


def test_grams_by_hand(tmp_path: Path, devices: str) -> None:
    run = toy_runs.run(tmp_path, devices=devices, grids="solar,coal-wind", clock_hour=12.5, clients=1, rounds=1, baselines=[])
    grams = {"solar": 167, "coal-wind": 601}[regions(devices, 1)["c0"]]
    line = run.rounds[0]["clock"]
    assert line["grams"] == pytest.approx(line["joules"] / 3.6e6 * grams)
    assert run.records()[-1]["clock_grams"] == line["grams"]


def test_clients_without_a_region_are_dealt_one_within_their_kind() -> None:
    x = weft.experiment.resolve({"devices": "laptop,phone", "grids": "solar,coal-wind"}).experiment
    at = weft.experiment.handed.devices_of(x)
    devices = {str(i): at(i) for i in range(40)}
    found = Counter((devices[c].name, grid.name) for c, grid in weft.experiment.handed.grids_of(x, devices).items())
    assert len(found) == 4
    assert min(found.values()) >= 9


def test_a_run_that_was_killed_draws_the_same(tmp_path: Path, devices: str) -> None:
    file = tmp_path / "batteries.toml"
    file.write_text(Path(devices).read_text() + f"[phone]\n{KIND}battery = 0.05\nrecharge = 0.02\nshare = 2\n")
    for cohorts in ("carbon", "battery"):
        about = CHOOSES | {
            "devices": str(file),
            "cohorts": cohorts,
            "method": "fedsa-lora",
            "rounds": 6,
            "data": toy_runs.source(120),
        }
        whole = toy_runs.run(tmp_path, name=f"whole-{cohorts}", **about)
        with pytest.raises(Killed):
            toy_runs.run(tmp_path, name=f"killed-{cohorts}", observer=Dies(after=2), **about)
        resumed = weft.resume(tmp_path / f"killed-{cohorts}", data=toy_runs.source(120))
        assert digest(resumed.folder) == digest(whole.folder)
        one = toy_runs.run(tmp_path, name=f"one-{cohorts}", pack=1, **about)
        for name in ("clock", "cohort", "lost"):
            assert [line[name] for line in one.rounds] == [line[name] for line in whole.rounds]


def test_a_client_below_the_floor_is_not_drawn(tmp_path: Path) -> None:
    file = tmp_path / "phones.toml"
    file.write_text(f"[phone]\n{KIND}")
    each = toy_runs.run(tmp_path, name="mains", devices=str(file), rounds=1, baselines=[], clients=1).rounds[0]["clock"]["joules"]
    file.write_text(f"[phone]\n{KIND}battery = {each * 2.5}\nrecharge = {each / 1000}\n")
    about = SMALL | {"devices": str(file), "clients": 1, "rounds": 3, "parameters": {}}
    run = toy_runs.run(tmp_path, name="battery", cohorts="battery", battery_floor=0.6, **about)
    assert [line["lost"] for line in run.rounds] == [[], [], []]
    assert [line["clock"]["waited"] > 0 for line in run.rounds] == [False, False, True]
    lot = toy_runs.run(tmp_path, name="random", **about)
    assert [line["lost"] for line in lot.rounds] == [[], [], ["c0"]]  # it runs out in its third turn
    assert lot.rounds[2]["clock"]["joules"] < each


def test_a_run_ends_before_a_round_that_would_exceed_its_budget(tmp_path: Path, devices: str) -> None:
    about = SMALL | {"devices": devices, "grids": "solar,coal-wind", "rounds": 5, "eval_every": 0, "parameters": {"batch": 4}}
    free = toy_runs.run(tmp_path, name="free", **about)
    joules, grams = ([line["clock"][n] for line in free.rounds] for n in ("joules", "grams"))
    assert joules[1] == pytest.approx(joules[2], rel=1e-6)
    for name, more in {
        "joules": {"energy_budget": sum(joules[:3]) * 1.01},
        "grams": {"carbon_budget": sum(grams[:3]) * 1.01},
    }.items():
        run = toy_runs.run(tmp_path, name=name, **about, **more)
        assert len(run.rounds) == 3
        assert run.rounds[-1]["evaluations"]
        assert run.summary["finished"]
        assert run.summary["stopped"]["why"].startswith("the next would cost about ")
        assert run.summary["clock"][name] <= next(iter(more.values()))
    first = toy_runs.run(tmp_path, name="first", **about, energy_budget=joules[0] / 2)
    assert len(first.rounds) == 1  # of which nothing was known


def test_a_budget_that_is_spent_is_refused(tmp_path: Path, devices: str) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="killed", devices=devices, observer=Dies(after=1), **SMALL)
    file = tmp_path / "killed" / "experiment.toml"
    text = file.read_text()
    assert 'energy_budget = "none"' in text
    file.write_text(text.replace('energy_budget = "none"', "energy_budget = 1e-9"))
    with pytest.raises(UserError, match=r"^the energy budget of 1e-09 J is spent already, by .* J: give a larger one\.$"):
        weft.resume(tmp_path / "killed", data=toy_runs.source())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cohorts": "carbon"}, r"cohorts is carbon, but no device keeps the time"),
        ({"energy_budget": 5.0}, r"energy_budget is 5, but no device keeps the time"),
        ({"devices": "laptop", "cohorts": "carbon"}, r"cohorts = carbon chooses by grams of CO₂, which no grid is known for"),
        ({"devices": "laptop", "carbon_budget": 5.0}, r"carbon_budget counts by grams of CO₂, which no grid is known for"),
        (
            {"devices": "laptop", "cohorts": "carbon", "grids": "solar"},
            r"cohorts = carbon chooses some .* participation 1 takes all",
        ),
        ({"devices": "laptop", "cohorts": "battery"}, r'no device of "laptop" has a battery'),
        ({"devices": "laptop", "carbon_fairness": 0.1}, r"carbon_fairness is 0\.1, but is for --cohorts carbon"),
        ({"devices": "laptop", "battery_floor": 0.1}, r"battery_floor is 0\.1, but is for --cohorts battery"),
        ({"devices": "laptop", "grids": "wind"}, r'there is no grid "wind": .* Did you mean "coal-wind"'),
        ({"devices": "DEVICES", "grids": "solar"}, r'\[windy\] is in the region "coal-wind", and grids has solar'),
    ],
)
def test_settings_that_cannot_be(more: dict[str, Any], words: str, tmp_path: Path, devices: str) -> None:
    with pytest.raises(UserError, match=rf"^{words}.*[.?]$"):
        toy_runs.run(tmp_path, **SMALL, **{n: devices if v == "DEVICES" else v for n, v in more.items()})


def test_tables_and_the_page_tell_carbon(tmp_path: Path, devices: str) -> None:
    run = toy_runs.run(tmp_path, name="told", devices=devices, grids="solar,coal-wind", **SMALL)
    out = Console(width=120, record=True, file=io.StringIO())
    terminal.closing(out, run.summary, run.rounds)
    assert "CO₂ on them" in out.export_text()
    assert "CO₂ on devices, g" in page.document.html(page.shown.shown([run]))
    plain = toy_runs.run(tmp_path, name="plain", devices=devices, **SMALL)
    assert plain.summary["clock"]["grams"] is None
    terminal.closing(out, plain.summary, plain.rounds)
    assert "CO₂ on them" not in out.export_text()
    assert "CO₂ on devices, g" not in page.document.html(page.shown.shown([plain]))
