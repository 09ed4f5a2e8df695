"""Modules import from below: no circle anywhere, and `federation/` in the order in which docs/architecture.md lists it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import architecture_picture
from paths import ROOT

SOURCE = ROOT / "src"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "weft").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path, everything: bool) -> set[str]:
    """Modules of ours that a file imports: at its top level alone, or wherever it does, for types too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everything else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & MODULES.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    for name in graph:
        if found := visit(name, []):
            return found
    return []


def test_no_module_needs_itself_to_be_imported() -> None:
    assert circle({n: imports(p, everything=False) - {n} for n, p in MODULES.items()}) == []


def needs_of_packages() -> dict[str, set[str]]:
    """What each package or single module at the top needs, wherever it imports it, for types too."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        own = name.split(".")[1:2]
        if own and own != ["__main__"]:
            others = {o.split(".")[1] for o in imports(path, everything=True) if "." in o}
            graph.setdefault(own[0], set()).update(others - {own[0]})
    return graph


def test_no_package_needs_one_that_needs_it() -> None:
    assert circle(needs_of_packages()) == []


def test_the_picture_shows_each_package_above_all_that_it_needs() -> None:
    graph = needs_of_packages()
    rows = [row.split() for row, _, _ in architecture_picture.ROWS]
    height = {name: -i for i, row in enumerate(rows) for name in row}
    assert len(height) == sum(map(len, rows))
    assert height.keys() | set(architecture_picture.ANYWHERE) == graph.keys()
    for name, needs in graph.items():
        for other in needs - set(architecture_picture.ANYWHERE):
            assert name in height, f"{name} is drawn nowhere and imports {other}"
            assert height[other] <= height[name], f"{name} imports {other}, which is drawn above it"
    assert architecture_picture.PICTURE.read_text(encoding="utf-8") == architecture_picture.drawn()


def named_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Modules that share a file name, by that name. Commands are called by what they are about, tests by what they are of."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem = name.rpartition(".")[2]
        if stem != "__main__" and not name.startswith(("weft.cli.", "weft.testing.")):
            found.setdefault(stem, []).append(name)
    return {stem: of for stem, of in found.items() if len(of) > 1}


def test_no_two_modules_share_a_file_name() -> None:
    assert named_alike(n for n, path in MODULES.items() if path.name != "__init__.py") == {}


def packages() -> list[str]:
    """The first column of the table of packages, from the bottom to the top."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("| package |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)/`", row)]


def test_storage_needs_nothing_of_what_is_stored() -> None:
    """It lies on the packages above its row and on errors: on no client, no message, no run."""
    rows = packages()
    below = {*rows[: rows.index("storage") + 1], "errors"}
    assert "federation" in rows
    assert "federation" not in below
    for name, path in MODULES.items():
        if name.startswith("weft.storage"):
            assert {o.split(".")[1] for o in imports(path, everything=True) if "." in o} <= below, name


def test_every_package_has_a_row() -> None:
    there = {p.parent.name for p in (SOURCE / "weft").glob("*/__init__.py")}
    assert set(packages()) == there


def listed() -> list[set[str]]:
    """The rows of the table of `federation/`, from the bottom to the top."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## From the bottom to the top of `federation/`")[1].split("\n## ")[0]
    return [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in section.splitlines() if line.startswith("| `")]


def test_federation_reads_from_the_bottom_to_the_top() -> None:
    """For types too: whoever reads a file knows all that it speaks of."""
    rank = {f"weft.federation.{name}": row for row, names in enumerate(listed()) for name in names}
    for name, row in rank.items():
        for other in imports(MODULES[name], everything=True):
            assert rank.get(other, 0) <= row, f"{name} imports {other}, which stands above it"
    ours = {n: imports(MODULES[n], everything=True) & rank.keys() - {n} for n in rank}
    assert circle(ours) == []


@pytest.mark.parametrize("family", ["adapters", "full", "prompts", "reparameterized", "selective"])
def test_a_methods_file_imports_the_contract_in_one_line(family: str) -> None:
    for path in (SOURCE / "weft" / "methods" / family).glob("*.py"):
        ours = imports(path, everything=True)
        assert len(ours) <= 4, path
        assert all(n == "weft.contract" or n.startswith(("weft.aggregation", "weft.tensors", "weft.methods")) for n in ours), path


def test_a_kind_of_task_is_named_where_tasks_are_alone() -> None:
    for name, path in MODULES.items():
        if not name.startswith("weft.tasks"):
            code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
            assert not re.search(r"(import .*|[^\w ])\bClassification\b", code), name  # titles of papers may have the word


@pytest.mark.parametrize("folder", ["benchmarks", "scripts"])
def test_what_scripts_import_of_weft_is_there(folder: str) -> None:
    """Nothing runs them in the tests: they take too long."""
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "weft":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    known = hasattr(module, alias.name) or f"{node.module}.{alias.name}" in MODULES
                    assert known, f"{path.name} imports {alias.name} of {node.module}"
