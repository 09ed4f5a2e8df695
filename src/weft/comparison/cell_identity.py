"""What decides a cell's numbers, as one hash: a finished cell with the same is never run again."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import weft
from weft.backbones.finding import find
from weft.comparison.cell_grid import Cell
from weft.experiment import GROUPS, Experiment, resolve
from weft.experiment.declare import declared
from weft.runs.provenance import version

NOT_OF_NUMBERS = (*declared(GROUPS["output"]), "debug")
PACKAGES = ("torch", "transformers", "numpy", "peft")


def of_cell(experiment: Experiment, given: str | None) -> str:
    """A hash of settings, data, weights, and the code that plays them.

    Args:
        given: fingerprint of data that have no name; None = they have one.
    """
    settings = {n: v for n, v in experiment.flat().items() if n not in NOT_OF_NUMBERS}
    about = {
        "settings": settings,
        "data": given or _content(experiment.data),
        "public": None if experiment.public is None else _content(experiment.public),
        "start": None if experiment.start is None else _content(experiment.start),
        "weights": [_content(find(name)[0]) for name in experiment.models],
        "code": code(),
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
