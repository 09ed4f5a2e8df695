"""pydocs: the standard library's own docstrings, labelled by a fixed map, with modules held out."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from weft.data import load, partition
from weft.data.pydocs import pydocs
from weft.data.pydocs_areas import AREAS, SOURCES, UNSEEN
from weft.errors import UserError

# PEP 594, PEP 632 and their kin
REMOVED = {
    "aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp",
    "lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd",
    "sunau", "telnetlib", "uu", "xdrlib",
}  # fmt: skip


def module_of(relative: Path) -> str | None:
    """The module a file belongs to, worked out from the file, the other way round than the reader does."""
    top = relative.parts[0].removesuffix(".py")
    owner = next((module for module, files in SOURCES.items() if top in files), top)
    return owner if any(owner in modules for modules in AREAS.values()) else None


def test_every_row_is_a_docstring_of_its_module() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, set[str]] = {}
    folders = [path for path in library.iterdir() if path.name != "site-packages"]
    for path in [p for top in folders for p in (top.rglob("*.py") if top.is_dir() else [top])]:
        module = module_of(path.relative_to(library))
        if module is None or path.suffix != ".py" or "test" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(module, set()).add(" ".join((ast.get_docstring(node) or "").split()))
    source = pydocs()
    tables = [source.train, *source.unseen.values()]
    rows = [(key, text) for table in tables for key, text in zip(table.keys or (), table.texts, strict=True)]
    assert all(text in found[module] for module, text in rows)
    every = {text for texts in found.values() for text in texts if len(text) >= 20}
    assert len(rows) == len({text for _, text in rows})
    assert {text for _, text in rows} == every


def test_there_are_thousands_of_rows_and_no_area_is_tiny_or_dominant() -> None:
    source = pydocs()
    counts = Counter(source.train.labels.tolist())
    assert 5000 < len(source.train) < 9000
    assert 400 < sum(map(len, source.unseen.values())) < 1000
    assert set(counts) == set(range(len(source.classes)))
    assert min(counts.values()) > 150  # without Tk installed "graphical interfaces" has the 170 rows of turtle
    assert max(counts.values()) < 0.2 * len(source.train)


def test_labels_are_the_area_of_the_module() -> None:
    source = pydocs()
    assert source.classes == tuple(AREAS)
    for table in (source.train, *source.unseen.values()):
        for key, label in zip(table.keys or (), table.labels.tolist(), strict=True):
            assert key in AREAS[source.classes[label]]


def test_the_map_lists_each_module_once_and_only_modules_of_every_supported_python() -> None:
    modules = [module for area in AREAS.values() for module in area]
    assert len(modules) == len(set(modules))
    assert not set(modules) & REMOVED
    assert {module.partition(".")[0] for module in modules} <= set(sys.stdlib_module_names) | {"turtledemo"}
    assert set(SOURCES) <= set(modules)


def test_unseen_modules_are_never_trained_on_and_cover_every_area_without_emptying_one() -> None:
    source = pydocs()
    assert not set(source.unseen) & set(source.train.keys or ())
    assert not {i for table in source.unseen.values() for i in table.ids.tolist()} & set(source.train.ids.tolist())
    for area, modules in AREAS.items():
        assert set(modules) & set(UNSEEN), area
        assert set(modules) - set(UNSEEN), area


def test_the_fingerprint_does_not_depend_on_the_seed() -> None:
    assert load("pydocs", seed=1).fingerprint == load("pydocs", seed=2).fingerprint
    source = load("pydocs")
    assert partition(source, seed=1).fingerprint == partition(source, seed=2, clients=3).fingerprint


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library in which each module is one file with one docstring."""
    for modules in AREAS.values():
        for module in modules:
            for name in SOURCES.get(module, (module,)):
                (tmp_path / f"{name}.py").write_text(f'"""The documentation of module {module} in {name}."""\n')
    return tmp_path


def texts(library: Path, module: str) -> list[str]:
    source = pydocs(library)
    return [t for t, key in zip(source.train.texts, source.train.keys or (), strict=True) if key == module]


def test_docstrings_are_read_wherever_python_documents_and_whitespace_is_normalised(library: Path) -> None:
    (library / "heapq.py").write_text(
        '"""Module   docstring\n\n    over lines."""\n'
        "class A:\n    '''A class with a docstring.'''\n"
        "    def f(self):\n        r'''A method with a docstring.'''\n"
        "        async def g():\n            'An inner coroutine function.'\n"
        "try:\n    import x\nexcept ImportError:\n    def h():\n        'A function in a handler.'\n"
        "def short():\n    'too short'\n"
        "def dynamic():\n    f'not a docstring {1}'\n"
        "VALUE = 'a string that documents nothing'\n"
    )
    assert texts(library, "heapq") == [
        "Module docstring over lines.",
        "A class with a docstring.",
        "A method with a docstring.",
        "An inner coroutine function.",
        "A function in a handler.",
    ]


def test_a_repeated_docstring_is_kept_once(library: Path) -> None:
    for module in ("heapq", "bisect", "http"):
        (library / f"{module}.py").write_text('"""The same words in three modules."""')
    every = [text for module in ("bisect", "heapq", "http") for text in texts(library, module)]
    assert every == ["The same words in three modules."]


def test_tests_inside_packages_are_left_out(library: Path) -> None:
    (library / "email.py").unlink()
    for folder, text in (
        (".", "The package."),
        ("mime", "A subpackage."),
        ("test", "Tests."),
        ("tests", "Tests."),
    ):
        (library / "email" / folder).mkdir(parents=True, exist_ok=True)
        (library / "email" / folder / "__init__.py").write_text(f'"""{text} With enough characters."""')
    assert texts(library, "email") == [
        "The package. With enough characters.",
        "A subpackage. With enough characters.",
    ]


def test_a_changed_docstring_changes_the_fingerprint(library: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for path in library.iterdir():
        (other / path.name).write_text(path.read_text())
    assert pydocs(other).fingerprint == pydocs(library).fingerprint
    third = tmp_path_factory.mktemp("third")
    for path in library.iterdir():
        (third / path.name).write_text(path.read_text().replace("module heapq", "module heapQ"))
    assert pydocs(third).fingerprint != pydocs(library).fingerprint


def test_modules_that_a_distribution_leaves_out_are_named_in_a_note(library: Path) -> None:
    (library / "tkinter.py").unlink()
    (library / "turtledemo.py").unlink()
    source = pydocs(library)
    assert any("left out: tkinter, turtledemo" in note for note in source.notes)
    assert source.classes == tuple(AREAS)
    assert "turtledemo" not in source.unseen


def test_a_python_without_its_source_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"install Python with its \.py files"):
        pydocs(tmp_path)


def test_columns_of_pydocs_are_fixed() -> None:
    with pytest.raises(UserError, match="leave --label out"):
        load("pydocs", label="area")
