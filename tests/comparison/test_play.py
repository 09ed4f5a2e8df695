"""A grid of runs: each is played once, goes on after a stop, and a broken one leaves the others alone."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

import audited_runs
import tiny
import toy_runs
import weft
from command_line import table
from html_tree import parsed
from weft import start
from weft.comparison import cell_identity as identity
from weft.comparison import cells, compared_page, play
from weft.comparison.cell_grid import Grid
from weft.comparison.compared import Comparison
from weft.engines.observer import Observer
from weft.errors import Interrupted, UserError
from weft.experiment import resolve
from weft.methods import FedIT
from weft.report.table import Table
from weft.runs import audit_file, directory
from weft.runs.checkpoint import digest
from weft.runs.directory import RunDirectory
from weft.runs.shelf import Shelf

METHODS = ("fedit", "local", "ffa-lora", "fedsa-lora")
COMMON: dict[str, Any] = {
    "clients": 3, "rounds": 2, "max_length": 16, "device": "cpu", "precision": "float64", "method.rank": 2, "method.batch": 4,
    "method.sites": "q", "partition": "dirichlet", "min_rows": 4, "val_fraction": 0.2,
}  # fmt: skip


def made(root: Path, methods: tuple[str, ...] = METHODS, **more: Any) -> Grid:
    rows = root / "rows.csv"
    if not rows.exists():
        table(rows)
    common = COMMON | {"model": tiny.folder("bert"), "data": str(rows)} | more.pop("common", {})
    return Grid(methods, **({"seeds": (0, 1), "dimensions": {"alpha": (0.3, 5.0)}} | more), common=common)


@pytest.fixture(autouse=True)
def light(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("processes") is None:
        toy_runs.light(monkeypatch)


def counting(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda n: None) -> list[int]:
    """How many runs were begun."""
    begun: list[int] = []
    usual = start.start

    def watched(*args: Any, **named: Any) -> Any:
        begun.append(1)
        then(len(begun))
        return usual(*args, **named)

    monkeypatch.setattr(start, "start", watched)
    return begun


def plain(found: Comparison) -> list[dict[str, Any]]:
    """Its records without what takes other times on other days."""
    return [{n: v for n, v in r.items() if n not in ("seconds", "memory")} for r in found.records()]


def folders(root: Path) -> list[Path]:
    return sorted(p for p in (root / "cells").iterdir() if p.is_dir())


def test_a_grid_is_played_once_and_its_cells_have_the_numbers_of_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, begun, grid = start.start, counting(monkeypatch), made(tmp_path)
    found = play.compare(grid, tmp_path / "out")
    assert len(begun) == len(METHODS) * 2 * 2 == len(found.cells)
    assert not found.failed
    assert all(r["common"] is not None and r["own"] is not None for r in found.records())
    again = play.compare(grid, tmp_path / "out")
    assert len(begun) == len(found.cells)
    assert plain(again) == plain(found)
    assert all(done.found for done in again.cells)
    for done in found.cells[:6]:
        settings = dict(done.cell.settings) | {"runs": str(tmp_path / "single"), "name": done.place.name}
        assert digest(usual(resolve(settings)).folder) == digest(done.place)
    wider = play.compare(made(tmp_path, (*METHODS, "fedbf"), seeds=(0, 1, 2)), tmp_path / "out")
    assert len(begun) == len(wider.cells) == 5 * 2 * 3
    table_of = wider.tables()[0]
    assert [row[0] for row in table_of.rows] == [*METHODS, "fedbf"]
    content = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert [c["run"] for c in content["cells"]] == [d.place.name for d in wider.cells]
    assert all(c["version"] and c["data"] and c["weights"] and c["device"] == "cpu" for c in content["cells"])
    assert (tmp_path / "out" / "table.md").read_text().count("| fedbf |") == 3
    assert "fedbf has no method.rank, method.sites." in (tmp_path / "out" / "table.md").read_text()


def test_what_attacks_found_of_cells_stays_there_and_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, grid = counting(monkeypatch), made(tmp_path, ("fedit", "ffa-lora"), dimensions={}, common={"alpha": 0.3})
    found = play.compare(grid, tmp_path / "out", report=False)
    for done in found.cells[:3]:
        audit_file.keep(done.place, "labels", [audited_runs.result(score=0.6 + 0.2 * done.cell.seed)])
    again = play.compare(grid, tmp_path / "out", report=False)
    assert len(begun) == 4
    again.report()
    root = parsed((tmp_path / "out" / "report.html").read_text())
    (matrix,) = [t for t in root.all("table") if t.all("caption")[0].text == "labels: labels guessed, round 1"]
    rows = [[c.text for c in row.all("th", "td")] for row in matrix.all("tr")]
    assert rows == [
        ["method", "none"], ["fedit", "0.700 ± 0.141 (0.400) ×2"], ["ffa-lora", "0.600 (0.400) ×1"],
    ]  # fmt: skip


def test_two_rows_that_are_the_same_cell_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told = counting(monkeypatch), toy_runs.Told()
    grid = made(tmp_path, ("a", "b"), seeds=(0,), dimensions={}, variants={"a": "fedit", "b": "fedit"}, common={"alpha": 0.3})
    found = play.compare(grid, tmp_path / "out", observer=told)
    assert len(begun) == 1
    assert [r["method"] for r in found.records()] == ["a", "b"]
    assert found.records()[0]["common"] == found.records()[1]["common"]
    assert [s.split("]")[0] for s in told.sentences if s.startswith("[")] == ["[1/1"]


def test_a_setting_without_effect_is_told_once_for_each_of_its_values(tmp_path: Path) -> None:
    """Cells that differ in it alone have the same numbers, which is no finding."""
    told, grid = toy_runs.Told(), made(tmp_path, ("fedit",), common={"partition": "iid"})
    found = play.compare(grid, tmp_path / "out", observer=told)
    assert len({r["common"] for r in found.records() if r["seed"] == 0}) == 1
    said = [s for s in told.sentences if "has no effect" in s]
    assert said == [
        f"alpha = {a} has no effect: it goes with partition = dirichlet, and partition is iid here." for a in (0.3, 5.0)
    ]
    again = toy_runs.Told()
    play.compare(grid, tmp_path / "out", observer=again)
    assert [s for s in again.sentences if "has no effect" in s] == said


def test_a_grid_that_was_killed_three_times_has_the_same_table_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = made(tmp_path, METHODS[:3])
    whole = play.compare(grid, tmp_path / "whole")
    passed = 0

    usual = cells.play
    rounds: list[int] = []

    def dying(plan: Any, shelf: Any, data: Any = None, observer: Any = None) -> Any:
        class Told(Observer):
            def round_done(self, record: dict[str, Any]) -> None:
                rounds.append(1)
                if len(rounds) in (1, 8, 13):  # in the middle of a cell, and at the end of others
                    raise toy_runs.Killed

        return usual(plan, shelf, data, Told())

    monkeypatch.setattr(cells, "play", dying)
    for _ in range(3):
        with pytest.raises(toy_runs.Killed):
            play.compare(grid, tmp_path / "killed")
        passed += 1
    found = play.compare(grid, tmp_path / "killed")
    assert passed == 3
    assert plain(found) == plain(whole)
    assert [t.rows for t in found.tables()[-1:]] == [t.rows for t in whole.tables()[-1:]]
    for one, other in zip(folders(tmp_path / "whole"), folders(tmp_path / "killed"), strict=True):
        assert one.name == other.name
        assert digest(one) == digest(other)


def test_a_stop_is_one_sentence_and_finished_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    counting(monkeypatch, stop)
    with pytest.raises(Interrupted, match=r"^Stopped: finished cells are kept in .*out, and the same command goes on\.$"):
        play.compare(made(tmp_path), tmp_path / "out")
    assert sum(cells.finished(p) is not None for p in folders(tmp_path / "out")) == 2


def test_broken_cells_stand_in_the_table_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(number: int) -> None:
        if number == 2:
            raise ValueError("odd")
        if number == 3:
            raise UserError("no memory holds it: make it smaller.")

    begun = counting(monkeypatch, breaks)
    grid = made(tmp_path, ("fedit", "ffa-lora", "flora", "fedsa-lora"), seeds=(0,), dimensions={})
    found = play.compare(grid, tmp_path / "out")
    fedit, ffa, flora, fedsa = found.records()
    assert fedit["finished"]
    assert fedsa["finished"]
    assert ffa["reason"].startswith("ValueError: odd (a bug; traceback.txt in ")
    assert 'raise ValueError("odd")' in (found.cells[1].place / "traceback.txt").read_text()
    assert flora["reason"] == "no memory holds it: make it smaller."
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- flora: no memory holds it: make it smaller." in text
    begun.extend([0] * 9)  # beyond what breaks
    mended = play.compare(grid, tmp_path / "out")
    assert not mended.failed
    assert [d.found for d in mended.cells] == [True, False, False, True]


def test_settings_that_a_method_refuses_are_its_reason_and_those_that_all_refuse_are_said(tmp_path: Path) -> None:
    some = play.compare(
        made(tmp_path, ("fedit", "flora"), common={"rule": "scaffold"}, seeds=(0,), dimensions={}), tmp_path / "a"
    )
    assert [r["finished"] for r in some.records()] == [True, False]
    assert some.records()[1]["reason"].startswith("flora needs each update by itself")
    with pytest.raises(UserError, match=r"^alpha is -1\.0, but must be more than 0"):
        play.compare(made(tmp_path, dimensions={"alpha": (-1.0,)}), tmp_path / "b")
    assert not (tmp_path / "b" / "cells.json").exists()


def test_the_same_cell_is_told_by_its_settings_data_weights_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(**common: Any) -> Path:
        return cells.planned(made(tmp_path, common=common).cells()[0], tmp_path, None).place

    usual = place()
    assert place() == usual
    assert place(rounds=3) != usual
    assert place(**{"method.alpha": 3.0}) != usual
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(tiny.folder("bert")).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert place(model=str(copy)).name[-12:] != usual.name[-12:]  # its name is a setting
    assert place(report=True, track=["tensorboard"]) == usual
    before = place(model=str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    assert place(model=str(copy)) != before
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text().replace("one", "two", 1))
    assert place() != usual
    kinds = tmp_path / "kinds.toml"
    marks = set()
    for speed in ("1.0", "2.0", "1.0"):
        kinds.write_text(f"[slow]\nspeed = {speed}\nmemory = 4\nbandwidth = 10\n")
        (legend,) = made(tmp_path, ("legend",), common={"devices": str(kinds)}, dimensions={}, seeds=(0,)).cells()
        plan = cells.planned(legend, tmp_path, None)
        assert plan.resolved is not None, plan.reason
        marks.add(plan.place)
    assert len(marks) == 2
    monkeypatch.setattr(identity, "code", lambda: "other code")
    now = place()
    monkeypatch.setattr(identity, "code", lambda: "yet another")
    assert place() != now
    now = place()
    monkeypatch.setattr(identity, "_of_method", lambda cls: f"another {cls.__name__}")
    assert place() != now


def test_rows_in_memory_are_told_by_what_they_are(tmp_path: Path) -> None:
    about = {"model": tiny.folder("bert"), "to": tmp_path / "out", "quiet": True} | {
        n: v for n, v in COMMON.items() if "." not in n
    }
    about["parameters"] = {"rank": 2, "sites": "q", "batch": 4}
    found = weft.compare(["fedit", "fedsa-lora"], toy_runs.source(), alpha=[0.3, 5.0], **about)
    assert len(found.cells) == 4
    assert not found.failed
    same = weft.compare(["fedit", "fedsa-lora"], toy_runs.source(), alpha=[0.3, 5.0], **about)
    assert all(d.found for d in same.cells)
    other = weft.compare(["fedit", "fedsa-lora"], toy_runs.source(seed=1), alpha=[0.3, 5.0], **about)
    assert not any(d.found for d in other.cells)
    assert len(found.frame()) == 4
    with pytest.raises(UserError, match="know data by name"):
        weft.compare(["fedit"], toy_runs.source(), jobs=2, **about)


def test_validation_rows_choose_a_rate_for_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = counting(monkeypatch)
    rates = (1e-3, 3e-2, 0.3)
    grid = made(tmp_path, ("fedit", "local", "fedsa-lora"), dimensions={}, tune=("lr", rates))
    found = play.compare(grid, tmp_path / "out")
    rows = found.records()
    own = [r for r in rows if r["tuned"] is None]
    tuned = [r for r in rows if r["tuned"] is not None]
    assert len(own) == 3 * 2
    assert len(tuned) == 3 * 2
    assert len(begun) == 6 + 3 * 3 + 3  # of the second seed; the first was tried
    for choice in found.choices:
        tries = {}
        for rate in rates:
            place = cells.planned(grid.cell(choice.row, {}, 0, ("lr", rate)), tmp_path / "out" / "cells", None).place
            summary = cells.finished(place)
            assert summary is not None
            assert summary["settings"]["method.optim.lr"]["value"] == rate
            tries[rate] = next(
                e["value"] for e in summary["evaluations"] if (e["people"], e["metric"]) == ("validation", "accuracy")
            )
        assert tries[choice.value] == max(tries.values())
        edge = ", the smallest tried" if choice.value == rates[0] else ", the largest tried" if choice.value == rates[-1] else ""
        assert choice.note.startswith(f"{choice.row}, tuned: lr = {choice.value:g}{edge}")
    assert [row[0] for row in found.tables()[0].rows] == [
        "fedit",
        "fedit, tuned",
        "local",
        "local, tuned",
        "fedsa-lora",
        "fedsa-lora, tuned",
    ]


def test_without_validation_rows_nothing_is_chosen(tmp_path: Path) -> None:
    grid = made(tmp_path, ("fedit",), dimensions={}, seeds=(0,), tune=("lr", (0.1, 0.2)), common={"val_fraction": 0.0})
    found = play.compare(grid, tmp_path / "out")
    assert found.notes == ["fedit is not tuned: it has no score on validation rows: give --val-fraction."]
    assert len(found.cells) == 1


def test_another_process_at_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with directory.locked(RunDirectory(tmp_path / "out")), pytest.raises(UserError, match="another process is working on"):
        play.compare(made(tmp_path), tmp_path / "out")


def test_a_table_is_read_as_it_was_written() -> None:
    one = Table("t", ("a", "b"), (("x", "1"), ("y", "2")), frozenset({(0, 1)}), ("A note.",), ((1, 1, 3),))
    said = json.loads(json.dumps(compared_page.written(one)))
    assert compared_page._read(said) == one
    del said["shades"]
    assert compared_page._read(said).shades == (), "of a comparison from before there were any"


def test_a_page_shows_all_cells_and_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_REPORT", "1")
    grid = made(tmp_path, ("fedit", "flora", "fedbf"), common={"rule": "scaffold"}, seeds=(0,), dimensions={})
    found = play.compare(grid, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Paired differences" in text
    assert "fedit · seed 0" in text
    assert "flora needs each update by itself" in text
    assert not (found.cells[0].place / "report.html").exists()
    other = found.report(tmp_path / "other.html")
    assert other.read_text() == text
    (tmp_path / "out" / "report.html").unlink()
    monkeypatch.setattr(Comparison, "report", lambda self: 1 / 0)
    told = toy_runs.Told()
    play.compare(grid, tmp_path / "out", observer=told)
    assert told.sentences[-1] == "no page was written (division by zero)."


def test_the_same_cell_of_another_grid_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = counting(monkeypatch)
    play.compare(made(tmp_path, ("fedit",), dimensions={"alpha": (0.3,)}, seeds=(0,)), tmp_path / "out")
    plain = made(tmp_path, ("fedit",), dimensions={}, seeds=(0,), common={"alpha": 0.3}, tune=("lr", (3e-4, 0.1)))
    found = play.compare(plain, tmp_path / "out")
    assert found.cells[0].found
    assert len(begun) == 2  # a rate that is the method's own is no other cell


def test_a_method_of_another_package_is_told_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text("class Theirs:\n    pass\n")
    monkey = importlib.util.spec_from_file_location("theirs", file)
    assert monkey is not None
    assert monkey.loader is not None
    module = importlib.util.module_from_spec(monkey)
    sys.modules["theirs"] = module
    try:
        monkey.loader.exec_module(module)
        before = identity._of_method(module.Theirs)
        file.write_text("class Theirs:\n    more = 1\n")
        assert identity._of_method(module.Theirs) != before
    finally:
        del sys.modules["theirs"]
    assert identity._of_method(FedIT) == ""


def test_a_cell_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    grid = made(tmp_path, ("fedit", "fedbf"), dimensions={}, seeds=(0,))
    place = cells.planned(grid.cells()[0], tmp_path / "out" / "cells", None).place
    place.mkdir(parents=True)
    (place / "theirs").write_text("kept")
    with directory.locked(RunDirectory(place)):
        found = play.compare(grid, tmp_path / "out")
    assert found.records()[0]["reason"] == f"another process is working on {place}."
    assert (place / "theirs").read_text() == "kept"
    assert found.records()[1]["finished"]


def test_a_process_that_ends_in_the_middle_costs_its_own_cells_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Of two parts the second breaks after its first cell."""

        def __init__(self, *_: Any) -> None:
            self.parts = 0

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def submit(self, work: Any, some: list[Any], *more: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.parts += 1
            if self.parts == 1:
                future.set_result(work(some, *more))
            else:
                work(some[:1], *more)
                future.set_exception(BrokenProcessPool("gone"))
            return future

    monkeypatch.setattr(play, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(play, "_SHELF", [Shelf()])
    found = play.compare(made(tmp_path, METHODS[:2], dimensions={}), tmp_path / "out", jobs=2)
    assert [d.cell.seed for d in found.failed] == [1]
    assert found.failed[0].reason == play.LOST


def test_a_dimension_without_effect_is_said(tmp_path: Path) -> None:
    found = play.compare(made(tmp_path, ("fedit",), common={"partition": "iid"}, seeds=(0,)), tmp_path / "out")
    assert "alpha makes no difference here: the numbers are the same for all its values." in found.notes


@pytest.mark.processes
def test_processes_beside_each_other_give_the_same_numbers(tmp_path: Path) -> None:
    grid = made(tmp_path, METHODS[:3])
    found = play.compare(grid, tmp_path / "beside", jobs=2)
    assert plain(found) == plain(play.compare(grid, tmp_path / "one"))


@pytest.mark.parametrize(
    ("count", "visible", "jobs", "wanted"),
    [
        (0, None, 2, [None, None]),
        (1, None, 2, [None, None]),
        (2, None, 3, ["0", "1", "0"]),
        (3, "5,7,6", 2, ["5", "7"]),
        (2, "GPU-a,GPU-b", 4, ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]),
    ],
)
def test_gpus_are_dealt_out_to_processes(
    count: int, visible: str | None, jobs: int, wanted: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert play.gpus(jobs) == wanted


def test_a_process_sees_the_gpu_that_it_was_dealt_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seats: queue.Queue[str | None] = queue.Queue()
    for gpu in ("1", None):
        seats.put(gpu)
    threads = torch.get_num_threads()
    for seen in ("1", "1"):  # the second is told nothing, and changes nothing
        play._begin(threads, seats)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    play._SHELF.clear()
