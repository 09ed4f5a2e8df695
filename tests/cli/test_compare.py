"""``weft compare`` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
import toy_runs
from command_line import flowing, refused, table, weft


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def small(where: Path, *more: object) -> list[object]:
    rows = where / "rows.csv"
    if not rows.exists():
        table(rows)
    about = {
        "--data": rows,
        "--model": tiny.folder("bert"),
        "--clients": 3,
        "--rounds": 2,
        "--max-length": 16,
        "--to": where / "out",
    }
    sets = ["--set", "method.rank=2", "--set", "method.batch=4"]
    return ["compare", *(x for pair in about.items() for x in pair), *sets, *more]


def test_commas_make_dimensions_and_tables_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = small(tmp_path, "--methods", "fedit,flora,fedbf", "--alpha", "0.3,5", "--seeds", "2")
    got = weft(capsys, *command)
    assert got.code == 0
    said = flowing(got.out)
    assert "3 methods · alpha 0.3, 5 · 2 seeds · 12 cells" in said
    assert "[12/12] fedbf · alpha 5 · seed 1: accuracy 0." in said
    assert "alpha 0.3" in said
    assert "Paired differences" in said
    assert "fedbf has no method.rank." in said
    again = weft(capsys, *command, "--json")
    assert again.code == 0
    cells = json.loads(again.out)
    assert [(c["method"], c["alpha"], c["seed"]) for c in cells[:3]] == [("fedit", 0.3, 0), ("fedit", 0.3, 1), ("flora", 0.3, 0)]
    assert all(c["finished"] for c in cells)
    assert "found finished" in again.err


def test_a_dry_run_tells_cells_bytes_and_time_and_plays_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = small(tmp_path, "--methods", "fedit,local,ffa-lora", "--rule", "scaffold,none", "--dry-run")
    got = weft(capsys, *command)
    said = flowing(got.out)
    assert got.code == 0
    assert "fedit · rule scaffold · seed 0 to be played" in said
    assert "6 cells to be played: about" in said
    assert not list((tmp_path / "out").glob("cells/*"))
    told = json.loads(weft(capsys, *command, "--json").out)
    assert [c["state"] for c in told["cells"]] == ["to be played"] * 6
    fedit, ffa = told["methods"]["fedit"], told["methods"]["ffa-lora"]
    assert fedit["up"] > ffa["up"] > 0
    assert fedit["seconds"] > 0
    assert told["methods"]["local"]["up"] is None
    weft(capsys, *[c for c in command if c != "--dry-run"])
    after = json.loads(weft(capsys, *command, "--json").out)
    assert [c["state"] for c in after["cells"]] == ["finished"] * 6


@pytest.mark.parametrize(
    ("more", "fragments"),
    [
        (("--methods", "fedti,flora,flroa"), ("there is no method fedti, flroa", "weft methods lists them")),
        ((), ("no method is named",)),
        (("--methods", "fedit", "--alpha", "2,x"), ('alpha is "x"', "number")),
        (("--methods", "fedit", "--seeds", "few"), ('seeds is "few"',)),
        (("--methods", "fedit", "--tune", "lr=0.1"), ("two values or more",)),
        (("--methods", "fedit,flora", "--set", "method.rnak=2"), ("no method of the grid has a setting method.rnak",)),
        (("grid.toml", "--methods", "fedit"), ("can't read the experiment file grid.toml",)),
    ],
)
def test_what_makes_no_comparison_is_one_sentence(
    more: tuple[str, ...], fragments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(weft(capsys, *small(tmp_path, *more), "--quiet"), *fragments)
    assert not (tmp_path / "out" / "cells.json").exists()


def test_a_finished_cell_that_is_damaged_is_played_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = small(tmp_path, "--methods", "fedit,fedbf", "--quiet")
    assert weft(capsys, *command).code == 0
    before = (tmp_path / "out" / "table.md").read_text()
    (cell,) = (tmp_path / "out" / "cells").glob("fedbf*")
    (cell / "summary.json").write_text('{"format": 99}')
    assert weft(capsys, *command).code == 0
    assert json.loads((cell / "summary.json").read_text())["finished"]
    strip = lambda text: [line.split("|")[:5] for line in text.splitlines()]  # noqa: E731 - but for the seconds
    assert strip((tmp_path / "out" / "table.md").read_text()) == strip(before)


def test_a_dry_run_of_a_method_whose_clients_are_played_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(weft(capsys, *small(tmp_path, "--methods", "fedavg", "--dry-run", "--json")).out)
    assert told["methods"]["fedavg"]["seconds"] > 0
    assert told["methods"]["fedavg"]["up"] > 0


def test_the_page_of_a_comparison_is_made_anew_of_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert weft(capsys, *small(tmp_path, "--methods", "fedit,fedbf,pfedpg", "--no-report")).code == 0
    assert not (out / "report.html").exists()
    got = weft(capsys, "report", out)
    assert got.code == 0
    assert flowing(got.out).rstrip().endswith("report.html: the page of a comparison.")
    text = (out / "report.html").read_text()
    for told in ("fedit, fedbf, pfedpg compared", "Paired differences", "All methods", "fedbf has no method.rank.", "pfedpg: "):
        assert told in text, told
    other = tmp_path / "other.html"
    assert weft(capsys, "report", out, "--to", other).code == 0
    assert other.read_text() == text
    both = weft(capsys, "report", out, out / "cells", "--to", tmp_path / "runs.html")
    assert both.code == 0
    assert "a page of 2 runs" in flowing(both.out)
    refused(weft(capsys, "report", out, "--title", "T"), "a comparison has a title of its own: leave --title out.")
    (out / "cells.json").write_text('{"format": 1}')
    refused(weft(capsys, "report", out), "cells.json is none that weft compare wrote: type the comparison again")


def test_what_methods_have_otherwise_and_why_one_would_fail_is_said_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = small(tmp_path, "--methods", "fedit,ffa-lora", "--set", "method.optim.clip=none", "--set", "method.optim.kind=sgd")
    before = weft(capsys, *command, "--dry-run")
    assert before.code == 0
    assert "method.optim.clip differs" not in flowing(before.out)
    assert "would not run" not in flowing(before.out)
    assert "method.optim.lr differs: " in flowing(before.out)
    assert weft(capsys, *command, "--no-report").code == 0
    assert "- method.optim.lr differs: " in (tmp_path / "out" / "table.md").read_text()
    many = flowing(weft(capsys, *[500 if c == 3 else c for c in command], "--dry-run").out)
    assert "fedit would not run: " in many
    assert "ffa-lora would not run: " in many
