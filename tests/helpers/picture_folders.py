"""Folders of pictures of a few pixels, whose colours stand for what they are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from weft.data import Rows, Source, load
from weft.errors import UserError

CLASSES = ("cat", "dog", "guinea_pig")
DOMAINS = ("photo", "sketch")


def colour(what: object) -> tuple[int, int, int]:
    rng = random.Random(repr(what))
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def draw(path: Path, what: object = None) -> Path:
    """A picture of two by three pixels, whose colour stands for ``what``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 3), colour(path.name if what is None else what)).save(path)
    return path


def shown(rows: Rows | None) -> list[Any]:
    """The colour of the first pixel of every row."""
    assert rows is not None
    assert rows.texts is None
    assert rows.images is not None
    return [rows.images[i].getpixel((0, 0)) for i in range(len(rows))]


def refusal(path: Path, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(str(path), **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def two_domains(folder: Path, names: Iterable[str] = CLASSES) -> Source:
    for domain, name, i in itertools.product(DOMAINS, names, range(3)):
        draw(folder / domain / name / f"{i}.png", (domain, name, i))
    return load(str(folder))
