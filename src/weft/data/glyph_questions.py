"""``glyph_questions``: questions about pictures of one to four coloured letters, drawn like ``glyphs``. Nothing is downloaded.

A picture has four quadrants, in each of which a letter may be; no letter and no colour is there twice. Four kinds of questions
are asked of each picture, and a kind is the natural client. Answers of a kind are about equally frequent, whatever is asked, so
that guessing pays little. The backbone ``glyph-vilt`` was trained on SEEN fonts; these are drawn from the others, and one of
their styles is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from weft.data.glyphs import FINE, LEFT_OUT, SIZE, STYLES, laid, reduced, shape
from weft.data.images import Images
from weft.data.rows import Rows, Source, fingerprint

LETTERS = tuple("abefgkmrsx")
COLOURS = {
    "red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.1, 0.2, 0.85), "yellow": (0.95, 0.9, 0.15),
    "purple": (0.55, 0.1, 0.65), "cyan": (0.15, 0.8, 0.85),
}  # fmt: skip
NUMBERS = ("one", "two", "three", "four")
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("what", "colour", "count", "where")
CLASSES = (*LETTERS, *COLOURS, *NUMBERS, *PLACES)
SIDE = 2 * SIZE  # pixels of a picture
EACH = 200  # pictures of a style
TESTED = 40  # of them, whose questions are for tests


@dataclass(frozen=True)
class Glyph:
    """A letter on a picture.

    Attributes:
        box: left, top, right and bottom in pixels; what lies between them holds all of its ink.
    """

    letter: str
    colour: str
    place: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, uint8 [SIDE, SIDE, 3], and what is on it, in no order."""

    style: str
    picture: np.ndarray
    glyphs: tuple[Glyph, ...]


@cache
def glyph_questions() -> Source:
    """7 styles × 200 pictures × 4 questions, of which one style is held out."""
    from weft.tensors.keyed import numpy_generator

    draw = numpy_generator(0, "glyph_questions", "asked")
    asked = [(scene, kind, *question(scene, kind, draw)) for scene in scenes() for kind in KINDS]
    number = {answer: i for i, answer in enumerate(CLASSES)}
    table = Rows(
        texts=[text for _, _, text, _ in asked],
        images=Images([scene.picture for scene, *_ in asked]),
        labels=np.array([number[answer] for *_, answer in asked]),
        ids=np.arange(len(asked)),
        keys=[kind for _, kind, *_ in asked],
    )
    return split("glyph_questions", CLASSES, table, "type", "answer")


def split(name: str, classes: tuple[str, ...], table: Rows, key: str, label: str) -> Source:
    """Rows about all scenes, as many about each, in their order: tests have pictures of their own.

    Args:
        key, label: what the natural client and the label are called.
    """
    each = len(table) // len(scenes())
    style = np.repeat([scene.style for scene in scenes()], each)
    last = np.arange(len(table)) // each % EACH >= EACH - TESTED
    train, test = (table.take((style != LEFT_OUT) & own) for own in (~last, last))
    unseen = {LEFT_OUT: table.take(style == LEFT_OUT)}
    return Source(
        name=name,
        classes=classes,
        train=train,
        test=test,
        unseen=unseen,
        key_name=key,
        label_name=label,
        fingerprint=fingerprint(classes, {"train": train, "test": test, "unseen": unseen[LEFT_OUT]}),
        notes=(f"{name}: {len(table)} questions about {len(scenes())} pictures, drawn by Weft.",),
    )


def question(scene: Scene, kind: str, draw: np.random.Generator) -> tuple[str, str]:
    """A question about one of the letters of a picture, and its answer."""
    asked = scene.glyphs[draw.integers(len(scene.glyphs))]
    return {
        "what": (f"what is {asked.place}?", asked.letter),
        "colour": (f"which colour is the {asked.letter}?", asked.colour),
        "count": ("how many glyphs are there?", NUMBERS[len(scene.glyphs) - 1]),
        "where": (f"where is the {asked.letter}?", asked.place),
    }[kind]


@cache
def scenes() -> tuple[Scene, ...]:
    """The pictures, style by style."""
    from weft.tensors.keyed import numpy_generator

    found = []
    for style, fonts in STYLES.items():
        draw = numpy_generator(0, "glyph_questions", style)
        found += [_scene(style, fonts[i % len(fonts)], 1 + i // len(fonts) % len(PLACES), draw) for i in range(EACH)]
    return tuple(found)


def _scene(style: str, font: str, many: int, draw: np.random.Generator) -> Scene:
    dark = draw.random() < 0.5
    canvas = np.broadcast_to(draw.uniform(0, 0.12) if dark else draw.uniform(0.88, 1), (2 * FINE, 2 * FINE, 3))
    letters, colours, places = (
        [names[i] for i in draw.permutation(len(names))[:many]] for names in (LETTERS, tuple(COLOURS), PLACES)
    )
    reach, glyphs = FINE // 10, []
    for letter, colour, place in zip(letters, colours, places, strict=True):
        row, column = divmod(PLACES.index(place), 2)
        mask = np.zeros((2 * FINE, 2 * FINE), np.float32)
        mask[row * FINE : (row + 1) * FINE, column * FINE : (column + 1) * FINE] = shape(letter, font, style == "outlined")
        mask = np.roll(mask, draw.integers(-reach, reach + 1, size=2), axis=(0, 1))
        canvas = laid(canvas, mask, np.clip(COLOURS[colour] + draw.normal(0, 0.04, 3), 0, 1), style)
        glyphs.append(Glyph(letter, colour, place, _box(mask)))
    return Scene(style, reduced(canvas, style, draw), tuple(glyphs))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    step = FINE / SIZE
    down, across = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return float(across[0] / step), float(down[0] / step), float((across[-1] + 1) / step), float((down[-1] + 1) / step)
