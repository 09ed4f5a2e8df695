"""``glyph_boxes``: where on a picture of coloured letters one of them is, as a box to write. Nothing is downloaded.

The pictures are those of :mod:`weft.data.glyph_questions`, and so are those that are tested on; the natural client is the style.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from weft.data.glyph_questions import Glyph, scenes, split
from weft.data.images import Images
from weft.data.rows import Rows, Source

CLASSES = ("box",)


@cache
def glyph_boxes() -> Source:
    """7 styles × 200 pictures, of which one style is held out; half of the questions name the letter, half its colour."""
    from weft.tensors.keyed import numpy_generator

    draw = numpy_generator(0, "glyph_boxes", "asked")
    every = scenes()
    asked = [scene.glyphs[draw.integers(len(scene.glyphs))] for scene in every]
    words = [f"find the {glyph.letter if draw.random() < 0.5 else f'{glyph.colour} one'}." for glyph in asked]
    table = Rows(
        texts=words,
        images=Images([scene.picture for scene in every]),
        answers=[written(glyph) for glyph in asked],
        ids=np.arange(len(every)),
        keys=[scene.style for scene in every],
    )
    return split("glyph_boxes", CLASSES, table, "style", "box")


def written(glyph: Glyph) -> str:
    """Left, top, right and bottom in pixels, as ``[3, 1, 14, 12]``."""
    return f"[{', '.join(str(round(side)) for side in glyph.box)}]"
