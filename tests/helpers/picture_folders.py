"""Folders of pictures of a few pixels, whose colours stand for what they are."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
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


def asked_about(folder: Path, rows: Sequence[Sequence[dict[str, str]]], size: tuple[int, int] = (8, 8)) -> list[str]:
    """Write a folder of pictures with rows about them, ``train.jsonl``, and give the questions of these.

    Args:
        rows: of each picture, the columns beside it. size: width and height of a picture, each of a shade of its own.
    """
    folder.mkdir()
    lines = []
    for i, about in enumerate(rows):
        Image.new("RGB", size, (255 * i // len(rows), 40, 90)).save(folder / f"{i}.png")
        lines += [{"image": f"{i}.png"} | one for one in about]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [line["question"] for line in lines]


def two_questions_each(pictures: int) -> list[list[dict[str, str]]]:
    """Rows of :func:`asked_about`, two of each picture, answered in words."""
    return [[{"question": f"w{i + j}", "answer": f"w{i % 3}"} for j in range(2)] for i in range(pictures)]
