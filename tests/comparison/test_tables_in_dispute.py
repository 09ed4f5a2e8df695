"""The grids of tables that papers disagree on can be played by anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.comparison.cell_grid import read_grid
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
        asked |= {n: None for n, v in asked.items() if v == "none"}
        assert {n: played[n] for n in asked} == asked


def test_there_are_tables() -> None:
    assert {p.stem for p in TABLES} >= {"flexlora", "signs-sgd", "signs-adamw", "fedpetuning"}
