"""The offline default: docstrings of CPython's own standard library, labelled by area of the library
reference.

They are read from the installed source with ``ast``; nothing is imported and nothing is downloaded. The
natural client is the top-level module.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from weft.data.pydocs_areas import AREAS, SOURCES, UNSEEN
from weft.data.rows import Rows, Source, fingerprint
from weft.errors import UserError

SHORTEST = 20  # characters of a normalised docstring: below that it is a name rather than a text
SKIPPED_FOLDERS = {"__pycache__", "idle_test", "site-packages", "test", "tests"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def pydocs(library: Path | None = None) -> Source:
    """Read the set from ``library``, by default the running Python's standard library folder.

    The result is kept for the life of the process. Raises UserError where the library's source is not
    installed.
    """
    return _read(library or Path(sysconfig.get_paths()["stdlib"]))


@lru_cache(maxsize=4)
def _read(library: Path) -> Source:
    classes = tuple(AREAS)
    area_of = {module: label for label, modules in enumerate(AREAS.values()) for module in modules}
    texts: list[str] = []
    modules: list[str] = []
    seen: set[str] = set()
    missing: list[str] = []
    for module in sorted(area_of):
        found = False
        for text in _docstrings(library, module):
            found = True
            # A repeated text stays with the first module in alphabetical order.
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                texts.append(text)
                modules.append(module)
        if not found:
            missing.append(module)
    if len(missing) > len(area_of) // 2:
        raise UserError(
            f"the source of Python's standard library is not under {library}, so pydocs can't be read; "
            f"install Python with its .py files, or give --data a local file."
        )
    labels = np.array([area_of[module] for module in modules])
    table = Rows(texts=texts, pairs=None, labels=labels, ids=np.arange(len(texts)), keys=modules)
    key = np.array(modules)
    unseen = {module: table.take(key == module) for module in UNSEEN if module not in missing}
    train = table.take(~np.isin(key, UNSEEN))
    notes = [f"pydocs: {len(texts)} docstrings of {len(set(modules))} modules, read from Python {_version(library)}."]
    if missing:
        notes.append(f"pydocs: not installed with this Python and left out: {', '.join(missing)}.")
    return Source(
        name="pydocs",
        classes=classes,
        train=train,
        unseen=unseen,
        key_name="module",
        fingerprint=fingerprint(classes, {"train": train, "unseen": Rows.concatenate(list(unseen.values()))}),
        notes=tuple(notes),
    )


def _version(library: Path) -> str:
    running = library == Path(sysconfig.get_paths()["stdlib"])
    return ".".join(map(str, sys.version_info[:3])) if running else f"at {library}"


def _docstrings(library: Path, module: str) -> Iterator[str]:
    """Every docstring of a module's files, whitespace normalised, in the order of path and line."""
    for name in SOURCES.get(module, (module,)):
        for path in _files(library, name):
            yield from _within(ast.parse(path.read_text(encoding="utf-8")))


def _within(node: ast.AST) -> Iterator[str]:
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
        yield " ".join(text.split())
    for child in ast.iter_child_nodes(node):
        if isinstance(child, STATEMENTS):  # expressions hold no definitions: not walking them halves the time
            yield from _within(child)


def _files(library: Path, name: str) -> list[Path]:
    single = library / f"{name}.py"
    if single.is_file():
        return [single]
    package = library / name
    inside = (path.relative_to(package) for path in package.rglob("*.py"))
    return [package / path for path in sorted(inside, key=lambda p: p.parts) if not SKIPPED_FOLDERS & set(path.parts)]
