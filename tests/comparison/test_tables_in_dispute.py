"""The grids of tables that papers disagree on can be played by anybody."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from weft.cli import comparing, main
from weft.comparison.cell_grid import Grid, read_grid
from weft.comparison.cells import planned

TABLES = sorted((Path(__file__).parents[2] / "benchmarks" / "tables").glob("*.toml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_every_cell_of_a_table_can_be_played_with_the_settings_that_its_file_has(path: Path) -> None:
    grid = read_grid(path, {"model": "minilm"})
    assert len(grid.seeds) == 3
    assert grid.lacking().keys() <= {"flora"}, "flora has a scale in the place of α"
    for row, slug in grid.variants.items():
        assert row in grid.methods, slug
    for cell in grid.cells():
        plan = planned(cell, Path("cells"), None)
        assert plan.resolved is not None, plan.reason
        played = plan.resolved.experiment.flat()
        asked = {n: v for n, v in cell.settings.items() if n.startswith("method.")}
        asked |= {n: None for n, v in asked.items() if v == "none" and n.endswith(".clip")}
        assert {n: played[n] for n in asked} == asked


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_the_commands_in_a_files_head_are_grids_that_can_be_played(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Grid] = []
    monkeypatch.setattr(comparing, "rehearse", lambda _out, grid, *_more: grids.append(grid))
    lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    head = "\n".join(lines).replace("\\\n", "")
    commands = [line.split("   ")[0] for line in head.splitlines() if line.startswith("weft compare ")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)[2:]
        with pytest.raises(SystemExit) as left:
            main(["compare", str(path), *words[1:], *([] if "--model" in words else ["--model", "minilm"]), "--dry-run"])
        assert not left.value.code, command
        for cell in grids[-1].cells():
            plan = planned(cell, Path("cells"), None)
            assert plan.resolved is not None, plan.reason
    assert len(grids) == 2


def test_there_are_tables() -> None:
    assert {p.stem for p in TABLES} >= {"flexlora", "signs-sgd", "signs-adamw", "fedpetuning"}
