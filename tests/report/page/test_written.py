"""Pages that are written: at the end of a run unless it is told not to, and by ``weft report``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from command_line import refused
from command_line import weft as typed
from html_tree import parsed
from weft.report import page
from weft.runs.checkpoint import digest

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy_runs.light(monkeypatch)
    monkeypatch.delenv("WEFT_REPORT")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[weft.Run]:
    """Two runs without a page."""
    return [toy_runs.run(tmp_path / "runs", quiet=True, seed=seed, name=f"s{seed}", report=False) for seed in (0, 1)]


def title(path: Path) -> str:
    return parsed(path.read_text(encoding="utf-8")).all("h1")[0].text


# at the end of a run ------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_page_and_has_the_same_numbers_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = toy_runs.run(tmp_path / "a", quiet=True)
    assert title(first.folder / "report.html") == "fedit on toy"
    assert "unfinished" not in parsed((first.folder / "report.html").read_text()).text
    second = toy_runs.run(tmp_path / "b", quiet=True, report=False)
    monkeypatch.setenv("WEFT_REPORT", "0")
    third = toy_runs.run(tmp_path / "c", quiet=True)
    for other in (second, third):
        assert not (other.folder / "report.html").exists()
        assert digest(other.folder) == digest(first.folder)


def test_a_page_that_fails_is_a_sentence_and_the_run_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no ink\nat all")

    monkeypatch.setattr(page, "write", fails)
    told = toy_runs.Told()
    run = toy_runs.run(tmp_path / "runs", observer=told)
    assert run.finished
    assert [s for s in told.sentences if "page" in s] == [f"no page was written (no ink); weft report {run.folder} tries again."]


def test_a_run_that_goes_on_ends_with_its_page(tmp_path: Path) -> None:
    with pytest.raises(toy_runs.Killed):
        toy_runs.run(tmp_path / "runs", observer=toy_runs.Dies(), name="r")
    assert not (tmp_path / "runs" / "r" / "report.html").exists()
    weft.resume(tmp_path / "runs" / "r", data=toy_runs.source(), quiet=True)
    assert (tmp_path / "runs" / "r" / "report.html").is_file()


# weft report --------------------------------------------------------------------------------------------------------------


def test_the_page_of_one_run_lies_in_its_folder(two: list[weft.Run], capsys: Capture) -> None:
    got = typed(capsys, "report", two[0].folder)
    path = two[0].folder / "report.html"
    assert (got.code, got.out) == (0, f"{path}: a page of 1 run.\n")
    assert title(path) == "fedit on toy"


def test_the_page_of_several_lies_here_and_has_each_once(two: list[weft.Run], tmp_path: Path, capsys: Capture) -> None:
    got = typed(capsys, "report", two[1].folder, tmp_path / "runs", "--title", "Both")
    assert (got.code, got.out) == (0, "report.html: a page of 2 runs.\n")
    root = parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert root.all("h1")[0].text == "Both"
    assert [e.text.split("/")[-2] for e in root.all("pre")] == ["s1", "s0"]
    got = typed(capsys, "report", tmp_path / "runs", "--to", "other.html")
    assert got.out == "other.html: a page of 2 runs.\n"


def test_it_tells_how_many_runs_it_has_read(two: list[weft.Run], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []

    class Watching(weft.Observer):
        def begin(self, stage: str, total: int) -> None:
            seen.append((stage, total))

        def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
            seen.append((stage, "one"))

    monkeypatch.setattr("weft.cli.report.watching", lambda screen, quiet: nullcontext(Watching()))
    assert typed(capsys, "report", two[0].folder, two[1].folder).code == 0
    assert seen == [("runs", 2), ("runs", "one"), ("runs", "one"), ("page", 0)]


def test_what_has_no_run_in_it_is_refused(two: list[weft.Run], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    refused(typed(capsys, "report", "nowhere"), "nowhere does not exist")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("none")
    refused(typed(capsys, "report", "notes"), "notes holds no run: give the folder of a run")
    refused(typed(capsys, "report", "empty"), "nothing of a run was saved in empty: start the one that was stopped there again")
    refused(typed(capsys, "report", two[0].folder, "--to", "empty"), "empty is a folder: give --to the name of a file")
