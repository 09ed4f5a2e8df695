"""``drawings``: pictures of things such as a star, a fish or an umbrella, drawn from polygons in seven ways, without a download.

The way of drawing is a domain: the natural client of its pictures. drawn-clip and drawn-vit, which come with Weft, know some of
the classes and some of the domains (``KNOWN`` and ``KNOWN_DOMAINS``), and little or nothing of the others.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from weft.data import brushes
from weft.data.brushes import FINE
from weft.data.images import Images
from weft.data.outlines import OUTLINES, Strokes
from weft.data.rows import Rows, Source, fingerprint

CLASSES = tuple(OUTLINES)
DOMAINS: dict[str, brushes.Brush] = {
    f.__name__: f
    for f in (
        brushes.filled, brushes.sketch, brushes.textured, brushes.painting, brushes.neon, brushes.noisy, brushes.mosaic
    )
}  # fmt: skip
LEFT_OUT = "mosaic"  # a domain that nobody trains on
KNOWN = tuple(c for c in CLASSES if c not in ("diamond", "umbrella", "crown", "key", "boat", "mushroom"))
KNOWN_DOMAINS = ("filled", "sketch", "textured")
EACH = 20  # pictures of a class in a domain


@cache
def drawings() -> Source:
    """20 classes × 7 domains × 20 pictures, of which one domain is held out."""
    from weft.tensors.keyed import numpy_generator

    labels = np.repeat(np.arange(len(CLASSES)), EACH)
    pictures: list[np.ndarray] = []
    for domain, brush in DOMAINS.items():
        draw = numpy_generator(0, "drawings", domain)
        masks = np.stack([mask(OUTLINES[CLASSES[label]](draw), draw) for label in labels])
        ink, ground = _colours(len(labels), draw)
        pictures += list(brushes.picture(brush, masks, ink, ground, draw))
    key = np.repeat(list(DOMAINS), len(labels))
    table = Rows(None, None, np.tile(labels, len(DOMAINS)), np.arange(len(key)), key.tolist(), Images(pictures))
    unseen = {LEFT_OUT: table.take(key == LEFT_OUT)}
    train = table.take(key != LEFT_OUT)
    return Source(
        name="drawings",
        classes=CLASSES,
        train=train,
        unseen=unseen,
        key_name="domain",
        fingerprint=fingerprint(CLASSES, {"train": train, "unseen": unseen[LEFT_OUT]}),
        notes=(f"drawings: {len(table)} pictures of {len(CLASSES)} things in {len(DOMAINS)} domains, drawn by Weft.",),
    )


def _colours(n: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two [n, 3], whose mean shades differ by 0.3 at least, so that a thing can be told from its ground."""
    ink, ground = draw.uniform(0, 1, (2, n, 3))
    while (near := np.abs(ink.mean(1) - ground.mean(1)) < 0.3).any():
        ink[near], ground[near] = draw.uniform(0, 1, (2, int(near.sum()), 3))
    return ink, ground


def mask(strokes: Strokes, draw: np.random.Generator) -> np.ndarray:
    """float32 [FINE, FINE], 1 where the thing is: turned, stretched and moved at random, within the picture."""
    from PIL import Image, ImageDraw

    fine = 2 * FINE  # since Pillow draws whole pixels
    turn, size = draw.uniform(-0.35, 0.35), draw.uniform(0.5, 0.78)
    stretch = np.exp(draw.uniform(-0.12, 0.12))
    c, s = np.cos(turn), np.sin(turn)
    by = size * np.array([[c * stretch, s * stretch], [-s / stretch, c / stretch]])
    every = np.concatenate([polygon for polygon, _ in strokes]) @ by
    low, high = every.min(0), every.max(0)
    shift = draw.uniform(-0.92 - low, np.maximum(0.92 - high, -0.92 - low))
    canvas = Image.new("L", (fine, fine), 0)
    pen = ImageDraw.Draw(canvas)
    for polygon, laid in strokes:
        at = (polygon @ by + shift + 1) * (fine / 2)
        pen.polygon([tuple(p) for p in at.tolist()], fill=255 if laid else 0)
    return np.asarray(canvas.reduce(2), np.float32) / 255
