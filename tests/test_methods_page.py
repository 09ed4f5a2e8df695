"""What the documentation says about methods is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "scripts" / "methods_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_methods_page_and_the_readme_are_what_the_script_writes(script: ModuleType) -> None:
    for path, text in script.wanted().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python scripts/methods_table.py"


def test_the_page_has_every_method_with_its_settings(script: ModuleType) -> None:
    page = script.page()
    for slug in script.ours():
        section = page.split(f"\n### {slug}\n")[1].split("\n### ")[0]
        for parameter in script.registry.parameters(script.registry.load(slug)):
            assert f"| `{parameter.name.split('.')[0]}` |" in section
