"""The source of CPython's own standard library: what it documents, by module, and which modules are never trained on.

It is read from the installed files with ``ast``; nothing is imported and nothing is downloaded.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from weft.data.pydocs_areas import AREAS, SOURCES, UNSEEN
from weft.data.rows import Rows, Source, fingerprint
from weft.errors import UserError

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SKIPPED_FOLDERS = {"__pycache__", "idle_test", "site-packages", "test", "tests"}
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
AREA_OF = {module: area for area, modules in AREAS.items() for module in modules}


def library() -> Path:
    """The folder of the standard library of the Python that runs Weft."""
    return Path(sysconfig.get_paths()["stdlib"])


def documented(folder: Path) -> Iterator[tuple[str, tuple[Definition, ...], str]]:
    """Everything with a docstring: its module, the definition with those it stands in (itself last), and the docstring.

    Modules come in alphabetical order, their files and lines in order.
    """
    for module in sorted(AREA_OF):
        for name in SOURCES.get(module, (module,)):
            for path in _files(folder, name):
                for definitions, text in _within(ast.parse(path.read_text(encoding="utf-8")), ()):
                    yield module, definitions, text


def _within(node: ast.AST, outer: tuple[Definition, ...]) -> Iterator[tuple[tuple[Definition, ...], str]]:
    if isinstance(node, Definition):
        outer = (*outer, node)
        if text := ast.get_docstring(node, clean=False):
            yield outer, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, STATEMENTS):  # expressions hold no definitions: not walking them halves the time
            yield from _within(child, outer)


def source(
    name: str, what: str, folder: Path, table: Rows, classes: Sequence[str], found: Collection[str], label: str | None = None
) -> Source:
    """The source of rows whose natural key is their module, with the held-out modules apart.

    Args:
        what: the rows are. found: modules with a docstring. label: what the answer is called, if there is one.

    Raises:
        UserError: most modules are not there.
    """
    missing = [module for module in sorted(AREA_OF) if module not in found]
    if len(missing) > len(AREA_OF) // 2:
        raise UserError(
            f"the source of Python's standard library is not under {folder}, so {name} can't be read; "
            f"install Python with its .py files, or give --data a local file."
        )
    key = np.array(table.keys)
    unseen = {module: table.take(key == module) for module in UNSEEN if module not in missing}
    train = table.take(~np.isin(key, UNSEEN))
    notes = [f"{name}: {len(table)} {what} of {len(set(key))} modules, read from Python {_version(folder)}."]
    if missing:
        notes.append(f"{name}: not installed with this Python and left out: {', '.join(missing)}.")
    return Source(
        name=name,
        classes=tuple(classes),
        train=train,
        unseen=unseen,
        key_name="module",
        label_name=label,
        fingerprint=fingerprint(classes, {"train": train, "unseen": Rows.concatenate(list(unseen.values()))}),
        notes=tuple(notes),
    )


def _version(folder: Path) -> str:
    return ".".join(map(str, sys.version_info[:3])) if folder == library() else f"at {folder}"


def _files(folder: Path, name: str) -> list[Path]:
    single = folder / f"{name}.py"
    if single.is_file():
        return [single]
    package = folder / name
    inside = (path.relative_to(package) for path in package.rglob("*.py"))
    return [package / path for path in sorted(inside, key=lambda p: p.parts) if not SKIPPED_FOLDERS & set(path.parts)]
