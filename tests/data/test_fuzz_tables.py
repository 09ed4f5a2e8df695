"""Damaged tables, a few of those that ``scripts/fuzz_inputs.py tables`` tries for as long as one likes."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from paths import ROOT

SCRIPT = ROOT / "scripts" / "fuzz_tables.py"


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_a_damaged_table_is_refused_or_accounted_for_row_by_row(first: int, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    outcomes = []
    for seed in range(first, first + 100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes.append(fuzz.one(random.Random(seed), folder).split(": ")[1])
    assert {"refused", "read with notes"} <= set(outcomes)  # neither is what always happens
