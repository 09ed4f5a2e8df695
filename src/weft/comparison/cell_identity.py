"""What decides a cell's numbers, as one hash: a finished cell with the same is never run again."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import weft
from weft.backbones.finding import find
from weft.backbones.short_names import encoders
from weft.comparison.cell_grid import Cell
from weft.experiment import OUTPUT, Resolved, resolve
from weft.runs.provenance import version

NOT_OF_NUMBERS = (*OUTPUT, "debug")
FILES = ("data", "public", "start", "devices", "availability", "grids")
"""Settings that may name a file or a folder."""
PACKAGES = ("torch", "transformers", "numpy", "peft")


def of_cell(resolved: Resolved, given: str | None) -> str:
    """A hash of settings, of all files that they name, of weights, and of the code that plays them.

    Args:
        given: fingerprint of data that have no name; None = they have one.
    """
    x = resolved.experiment
    settings = {n: v for n, v in x.flat().items() if n not in NOT_OF_NUMBERS}
    named = {n: _content(settings[n]) for n in FILES if settings[n] is not None and (n != "data" or given is None)}
    about = {
        "settings": settings,
        "files": named,
        "data": given,
        "weights": [_content(find(one)[0]) for name in x.models for one in encoders(name)],
        "code": [code(), _of_method(type(resolved.method))],
        "versions": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=repr).encode()).hexdigest()


def of_rows(cell: Cell, data: Any) -> str:
    """A hash of rows in memory, as a cell deals them out."""
    from weft.data.rows import fingerprint
    from weft.runs.prepare import deal

    dealt = deal(resolve(dict(cell.settings)).experiment, data)
    return dealt.fingerprint or fingerprint(dealt.classes, {c.id: c.train for c in dealt.clients} | {"test": dealt.test})


@functools.cache
def code() -> str:
    """A hash of Weft's own source."""
    root = Path(weft.__file__).parent
    return _hashed(sorted(root.rglob("*.py")), root)


def _of_method(cls: type) -> str:
    """A hash of the file of a method that another package brings; of ours "", they are in :func:`code`."""
    return "" if cls.__module__.split(".")[0] == "weft" else _content(inspect.getsourcefile(cls) or cls.__module__)


def _content(name: str) -> str:
    """A hash of a local file's or folder's content; any other name stands for itself."""
    place = Path(name).expanduser()
    if not place.exists():
        return name
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    stamps = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _of_stamped(stamps, str(place if place.is_dir() else place.parent))


@functools.cache
def _of_stamped(stamps: tuple[tuple[str, int, int], ...], root: str) -> str:
    """Files are read once, as long as nobody writes them."""
    return _hashed([Path(name) for name, _, _ in stamps], Path(root))


def _hashed(files: list[Path], root: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(str(file.relative_to(root)).encode() + b"\0")
        with open(file, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.hexdigest()
