"""Whole runs tell their energy everywhere, each time with whose word it is, and nothing of it changes a number of theirs."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tiny
import toy_runs
import weft
from command_line import refused, small, table
from command_line import weft as typed
from counting_machine import Machine
from machines import Machines, coordinate
from toy_runs import Dies, Killed, Told
from weft.callbacks.tracker import numbers
from weft.comparison import cell_identity, play
from weft.comparison.cell_grid import Grid
from weft.comparison.cells import planned
from weft.energy import counters
from weft.errors import UserError
from weft.experiment import resolve
from weft.report import page, terminal
from weft.runs import comparing
from weft.runs.checkpoint import digest
from weft.runs.shelf import Shelf

SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}, "rounds": 3}
DECLARED: dict[str, Any] = {"energy": 65, "idle_watts": 5, "carbon": 400}
KWH = 3.6e6


@pytest.fixture(autouse=True)
def _light(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "machines" not in request.fixturenames:
        toy_runs.light(monkeypatch)


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "experiment.toml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def said(summary: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    """The closing table of a run, and what stands below it in one line."""
    out = Console(width=120, record=True, file=io.StringIO())
    terminal.closing(out, summary, rounds)
    table, below = out.export_text().split("\n\n", 1)
    return f"{table}\n{' '.join(below.split())}"


# a run --------------------------------------------------------------------------------------------------------------------


def test_declared_watts_times_the_seconds_of_each_line_are_its_energy(tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path, observer=told, **SMALL | DECLARED)
    assert len(run.rounds) == 3
    for line in run.rounds:
        training, scoring = line["seconds"]["training"], line["seconds"]["evaluation"]
        assert line["energy"] == {
            "kwh": pytest.approx(60 * training / KWH),
            "co2_kg": pytest.approx(0.4 * 60 * training / KWH),
            "source": "declared: 65 W",
            "idle_w": 5,
            "gross_kwh": pytest.approx(65 * training / KWH),
            "g_per_kwh": 400,
            "evaluation_kwh": pytest.approx(60 * scoring / KWH),
        }
    found = run.summary["energy"]
    assert found["kwh"] == pytest.approx(60 * run.summary["seconds"]["training"] / KWH)
    assert found["evaluation_kwh"] == pytest.approx(60 * run.summary["seconds"]["evaluation"] / KWH)
    assert (found["source"], found["missing"], found["negative"], found["setup_kwh"]) == ("declared: 65 W", 0, 0, 0)
    assert [s for s in told.sentences if s.startswith("energy:")] == [
        "energy: declared: 65 W; 5 W of an idle machine are subtracted."
    ]


def test_counters_of_a_whole_run_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round draws 100 J in 10 s, its scoring 26 J in 2 s; the machine draws 3 W idle."""
    machine = Machine(tmp_path, monkeypatch)
    machine.works(monkeypatch, (10, 100), (2, 26))
    run = toy_runs.run(tmp_path / "runs", energy="measure", **SMALL | {"baselines": ["local"]})
    for line in run.rounds:
        assert line["energy"]["source"] == "measured: RAPL"
        assert line["energy"]["idle_w"] == pytest.approx(3, rel=1e-4)
        assert line["energy"]["kwh"] == pytest.approx(70 / KWH, rel=1e-4)
        assert line["energy"]["evaluation_kwh"] == pytest.approx(20 / KWH, rel=1e-3)
        assert line["energy"]["co2_kg"] is None
    assert run.summary["energy"]["kwh"] == pytest.approx(210 / KWH, rel=1e-4)
    assert run.summary["baselines"]["local"]["energy"]["kwh"] == pytest.approx(210 / KWH, rel=1e-4)
    assert "energy, measured" in said(run.summary, run.rounds)
    assert "CO₂" not in said(run.summary, run.rounds)


def test_nothing_of_it_changes_the_numbers_of_a_run(tmp_path: Path) -> None:
    without = toy_runs.run(tmp_path / "a", **SMALL)
    told = toy_runs.run(tmp_path / "b", **SMALL | DECLARED, repeat=2)
    assert digest(without.folder) == digest(told.folder)
    assert told.summary["repeat"] == {"runs": 2, "identical": True}
    assert (without.summary["energy"], "energy" in without.rounds[0]) == (None, False)
    assert comparing.compare([without.folder, told.folder]).verdict == "The same settings and the same results."


def test_baselines_and_the_heads_own_training_tell_theirs_apart(tmp_path: Path) -> None:
    more = SMALL | {"baselines": ["local", "central", "probe"], "start_head": "probe", "probe_rounds": 2}
    run = toy_runs.run(tmp_path, **more | DECLARED)
    setup = [json.loads(line) for line in (run.folder / "setup" / "rounds.jsonl").read_text().splitlines()]
    assert len(setup) == 2
    apart = sum(line["energy"]["kwh"] for line in setup)
    assert apart > 0
    assert run.summary["energy"]["setup_kwh"] == pytest.approx(apart)
    assert run.summary["energy"]["kwh"] == pytest.approx(sum(line["energy"]["kwh"] for line in run.rounds))
    for name in ("local", "central"):
        lines = [json.loads(line) for line in (run.folder / "baselines" / name / "rounds.jsonl").read_text().splitlines()]
        assert run.summary["baselines"][name]["energy"]["kwh"] == pytest.approx(sum(line["energy"]["kwh"] for line in lines))
    assert run.summary["baselines"]["probe"]["energy"]["kwh"] == pytest.approx(apart)
    closing = said(run.summary, run.rounds)
    (row,) = re.findall(r"energy, declared .*Wh", closing)
    assert row.count("Wh") == 4  # of the run and three baselines
    assert "of the head's own training" in closing


# a resumed run ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_adds_to_what_was_saved_and_counts_no_round_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    machine.works(monkeypatch, (10, 100), (2, 26))
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "runs", energy="measure", observer=Dies(1), **SMALL)
    (folder,) = (tmp_path / "runs").iterdir()
    first = (folder / "rounds.jsonl").read_text().splitlines()
    machine.spend(1000, 50_000)  # nobody's
    again = weft.resume(folder, data=toy_runs.source(), quiet=True)
    assert (folder / "rounds.jsonl").read_text().splitlines()[:2] == first
    assert [line["energy"]["kwh"] for line in again.rounds] == pytest.approx([70 / KWH] * 3, rel=1e-4)
    assert again.summary["energy"]["kwh"] == pytest.approx(210 / KWH, rel=1e-4)


def test_it_may_be_edited_on_the_way_and_each_round_keeps_what_it_was_told(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, observer=Dies(0), **SMALL)
    (folder,) = tmp_path.iterdir()
    edit(folder, '\nenergy = "off"', "\nenergy = 65")
    with pytest.raises(Killed):
        weft.resume(folder, data=toy_runs.source(), observer=Dies(1))
    edit(folder, "\nenergy = 65", "\nenergy = 80")
    edit(folder, '\nidle_watts = "none"', "\nidle_watts = 10")
    edit(folder, '\ncarbon = "none"', '\ncarbon = "FRA"')
    run = weft.resume(folder, data=toy_runs.source(), observer=Told())
    assert [(line.get("energy") or {}).get("source") for line in run.rounds] == [None, "declared: 65 W", "declared: 80 W"]
    found = run.summary["energy"]
    assert (found["missing"], found["source"], found["co2_kg"]) == (1, "declared: 65 W and declared: 80 W", None)
    assert found["kwh"] == pytest.approx(
        (65 * run.rounds[1]["seconds"]["training"] + 70 * run.rounds[2]["seconds"]["training"]) / KWH
    )
    assert "declared: 65 W and declared: 80 W, less 5 W idle, without 1 round" in said(run.summary, run.rounds)


# where it is shown --------------------------------------------------------------------------------------------------------


def test_a_terminal_a_page_and_trackers_say_whose_word_it_is(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, **SMALL | DECLARED | {"baselines": ["local"]})
    closing = said(run.summary, run.rounds)
    assert re.search(r"energy, declared +[\d.]+ m?Wh +- +[\d.]+ m?Wh", closing)
    assert re.search(r"CO₂, declared +[\d.]+ m?g +- +[\d.]+ m?g", closing)
    assert "energy of all rounds: declared: 65 W, less 5 W idle, without" in closing
    assert f" {terminal._scaled(1000 * run.summary['energy']['kwh'], 'Wh')} " in closing
    assert [terminal._scaled(v, "Wh") for v in (0.0123, 0.99951, 1.234, 999.4, 999.6, -0.5)] == [
        *("12.3 mWh", "1 Wh", "1.23 Wh", "999 Wh", "1 kWh", "-500 mWh")
    ]

    page.write(tmp_path / "page.html", [run])
    html = (tmp_path / "page.html").read_text()
    assert html.split("</main>")[0].count("declared: 65 W, less 5 W idle") == 2
    assert "fedit, baseline local" in html
    assert "declared: computed from the power that somebody declared for the device, not measured on it." in html

    told = numbers(run.rounds[0])
    assert told["energy_kwh_declared"] == run.rounds[0]["energy"]["kwh"]
    assert told["energy_co2_kg_declared"] == run.rounds[0]["energy"]["co2_kg"]
    assert not {"energy_kwh", "global/energy_kwh"} & told.keys()
    assert list(told)[-1] == "seconds"
    assert run.records()[0]["energy_source"] == "declared: 65 W"
    (row,) = {row["energy_kwh"] for row in run.records() if row["round"] == 1}
    assert row == run.rounds[0]["energy"]["kwh"]


def grid(root: Path, **more: Any) -> Grid:
    rows = root / "rows.csv"
    if not rows.exists():
        table(rows)
    usual = {
        "clients": 3, "rounds": 2, "max_length": 16, "device": "cpu", "precision": "float64", "method.rank": 2, "method.batch": 4,
        "partition": "iid", "model": tiny.folder("bert"), "data": str(rows),
    }  # fmt: skip
    return Grid(("fedit", "ffa-lora", "local"), (0, 1), common=usual | more)


def test_tables_of_a_comparison_say_it_in_every_format(tmp_path: Path) -> None:
    found = play.compare(grid(tmp_path, **DECLARED), tmp_path / "out")
    place = found.tables()[0]
    assert place.columns[-3:] == ("energy, Wh (declared)", "CO₂, g (declared)", "energy is")
    assert [row[-1] for row in place.rows] == ["declared: 65 W, less 5 W idle"] * 3
    mine = [done.summary["energy"]["kwh"] for done in found.cells if done.cell.row == "fedit" and done.summary]
    assert place.rows[0][-3] == f"{1000 * sum(mine) / 2:.3g}"
    assert float(place.rows[0][-2]) == pytest.approx(400 * sum(mine) / 2, rel=1e-2)
    for name in ("table.md", "table.csv", "table.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert text.count("declared: 65 W, less 5 W idle") == 3, name
        assert "energy, Wh (declared)" in text, name
    cells = json.loads((tmp_path / "out" / "cells.json").read_text())["cells"]
    assert all((c["energy_source"], c["energy_idle_w"]) == ("declared: 65 W", 5) for c in cells)
    assert "₂" not in (tmp_path / "out" / "table.tex").read_text()
    assert play.compare(grid(tmp_path), tmp_path / "without").tables()[0].columns[-1] == "memory, MB"


def test_cells_that_tell_none_are_told_apart_from_those_that_do(tmp_path: Path) -> None:
    """They were finished before somebody asked, and are found."""
    first = play.compare(grid(tmp_path), tmp_path / "out")
    wider = Grid(("fedit", "ffa-lora", "local", "fedsa-lora"), (0, 1, 2), common=dict(grid(tmp_path, **DECLARED).common))
    found = play.compare(wider, tmp_path / "out")
    assert sum(done.found for done in found.cells) == len(first.cells) == 6
    rows = {row[0]: row[-3:] for row in found.tables()[0].rows}
    assert rows["fedit"][-1] == "declared: 65 W, less 5 W idle, of 1 of 3 seeds"
    assert rows["fedsa-lora"][-1] == "declared: 65 W, less 5 W idle"


# a comparison -------------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_same_whatever_is_told_of_its_energy(tmp_path: Path) -> None:
    plain = resolve({"model": tiny.folder("bert")})
    usual = cell_identity.of_cell(plain, None)
    for more in (DECLARED, {"energy": "measure"}, {"energy": 65, "carbon": "DEU"}):
        assert cell_identity.of_cell(resolve({"model": tiny.folder("bert")} | more), None) == usual
    assert cell_identity.of_cell(resolve({"model": tiny.folder("bert"), "rounds": 3}), None) != usual
    one, other = (planned(grid(tmp_path, **more).cells()[0], tmp_path, None) for more in ({}, DECLARED))
    assert one.place == other.place


def test_counters_of_the_machine_are_refused_beside_other_jobs(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        play.compare(grid(tmp_path, energy="measure"), tmp_path / "out", jobs=2)
    assert str(refusal.value) == (
        'energy = "measure" reads counters of the whole machine, which count what 2 jobs draw for each of them: type --jobs 1, '
        "or declare the watts that all draw together, as in --energy 65."
    )
    assert not list((tmp_path / "out" / "cells").iterdir())


def test_a_grid_is_refused_as_a_whole_where_nothing_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "RAPL", str(tmp_path / "none"))
    with pytest.raises(UserError, match="its processor has none here"):
        play.compare(grid(tmp_path, energy="measure"), tmp_path / "out")
    with pytest.raises(UserError, match='carbon is "ZZZ"'):
        play.compare(grid(tmp_path, energy=65, carbon="ZZZ"), tmp_path / "out")
    assert not list((tmp_path / "out" / "cells").iterdir())


class Pool:
    """Processes beside each other that are this one."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Any, *more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*more))
        return future


def test_jobs_beside_each_other_share_the_declared_watts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(play, "_SHELF", [Shelf()])
    two = Grid(("fedit",), (0, 1), common=dict(grid(tmp_path, **DECLARED).common))
    found = play.compare(two, tmp_path / "out", jobs=2)
    assert not found.failed, found.failed
    for done in found.cells:
        assert done.summary is not None
        assert done.summary["energy"]["source"] == "declared: 65 W shared by 2 jobs"
        assert done.summary["energy"]["kwh"] == pytest.approx(30 * done.summary["seconds"]["training"] / KWH)


# the command line, and sites ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_without_counters_a_run_is_refused_before_it_has_a_folder(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "RAPL", str(tmp_path / "none"))
    got = typed(capsys, *small(tmp_path, "--quiet", "--energy", "measure", *more))
    refused(got, 'energy = "measure" reads counters of this machine, and its processor has none here (RAPL)', "--energy 65")
    assert not (tmp_path / "runs").exists()


def test_watts_are_typed_as_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--energy", "65", "--set", "idle_watts=5", "--carbon", "DEU", "--set", "method.steps=1")
    got = typed(capsys, *small(tmp_path, *more))
    assert got.code == 0, got.err
    assert "declared: 65 W; 5 W of an idle machine are subtracted." in got.out + got.err
    assert "energy, declared" in got.out
    refused(typed(capsys, *small(tmp_path, "--quiet", "--energy", "-3")), "energy is -3, but must be more than 0.0")


def test_of_a_federation_of_sites_it_is_the_coordinators_alone(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1), energy=20)
    machines.join("north")
    machines.join("south")
    done = coordinate(machines, energy=30)  # which may be another when it goes on
    sources = [line["energy"]["source"] for line in done.rounds]
    assert sources == [f"declared: {w} W of the coordinator alone" for w in (20, 20, 30)]
