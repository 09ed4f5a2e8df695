"""Some damaged pictures, folders, indexes and zips; ``scripts/fuzz_inputs.py pictures`` makes as many as one likes."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from paths import ROOT


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    file = ROOT / "scripts" / "fuzz_pictures.py"
    spec = importlib.util.spec_from_file_location("fuzz_pictures", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_inputs_are_shown_said_or_refused(fuzz: ModuleType, tmp_path: Path) -> None:
    outcomes = set()
    for i in range(150):
        folder = tmp_path / str(i)
        folder.mkdir()
        outcomes.add(fuzz.one(random.Random(i), folder))
    assert {"picture shown", "picture refused", "layout read", "index read", "archive read", "archive refused"} <= outcomes
