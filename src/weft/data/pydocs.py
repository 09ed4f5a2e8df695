"""The offline default: docstrings of CPython's own standard library, labelled by area of the library reference.

The natural client is the top-level module. How they are read is in :mod:`weft.data.stdlib`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from weft.data.pydocs_areas import AREAS
from weft.data.rows import Rows, Source
from weft.data.stdlib import AREA_OF, documented, source
from weft.data.stdlib import library as installed

SHORTEST = 20  # characters of a normalised docstring: below that it is a name rather than a text


def pydocs(library: Path | None = None) -> Source:
    """Read the set from ``library``, by default the running Python's standard library folder.

    The result is kept for the life of the process. Raises UserError where the library's source is not
    installed.
    """
    return _read(library or installed())


@lru_cache(maxsize=4)
def _read(library: Path) -> Source:
    classes = tuple(AREAS)
    modules: dict[str, str] = {}  # of each text: a repeated one stays with the first module in alphabetical order
    found: set[str] = set()
    for module, _, docstring in documented(library):
        found.add(module)
        text = " ".join(docstring.split())
        if len(text) >= SHORTEST:
            modules.setdefault(text, module)
    labels = np.array([classes.index(AREA_OF[module]) for module in modules.values()], dtype=np.int64)
    table = Rows(texts=list(modules), labels=labels, ids=np.arange(len(modules)), keys=list(modules.values()))
    return source("pydocs", "docstrings", library, table, classes, found)
