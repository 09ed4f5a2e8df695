"""``glyphs``: letters and digits drawn from the fonts that come with matplotlib. Nothing is downloaded.

There are two worlds. The backbones that come with Weft were trained on SEEN fonts in plain styles; this set is drawn from UNSEEN
fonts in styles of its own. A style is a domain: the natural client of its pictures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.data.images import Images
from weft.data.rows import Rows, Source, fingerprint

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
SIZE = 16  # pixels of a picture
FINE = 64  # pixels of the drawing that it is made from

SEEN = {  # file -> (family, weight, slant), in the words of the captions
    "DejaVuSans": ("sans", "plain", "upright"),
    "DejaVuSans-Bold": ("sans", "bold", "upright"),
    "DejaVuSans-Oblique": ("sans", "plain", "slanted"),
    "DejaVuSans-BoldOblique": ("sans", "bold", "slanted"),
    "DejaVuSerif": ("serif", "plain", "upright"),
    "DejaVuSerif-Bold": ("serif", "bold", "upright"),
    "DejaVuSerif-Italic": ("serif", "plain", "slanted"),
    "DejaVuSerif-BoldItalic": ("serif", "bold", "slanted"),
    "DejaVuSansMono": ("mono", "plain", "upright"),
    "DejaVuSansMono-Bold": ("mono", "bold", "upright"),
    "DejaVuSansMono-Oblique": ("mono", "plain", "slanted"),
    "DejaVuSansMono-BoldOblique": ("mono", "bold", "slanted"),
}
STYLES = {  # of the set: name -> fonts
    "roman": ("STIXGeneral", "cmr10"),
    "bold": ("STIXGeneralBol", "cmb10"),
    "italic": ("STIXGeneralItalic", "cmti10", "cmmi10"),
    "typewriter": ("cmtt10",),
    "outlined": ("STIXGeneralBol", "cmss10"),
    "noisy": ("STIXGeneral", "cmss10"),
    "shadowed": ("STIXGeneralBolIta", "cmb10"),
}
LEFT_OUT = "shadowed"  # a domain that nobody trains on
EACH = 16  # pictures of a character in a style


@cache
def glyphs() -> Source:
    """36 characters × 7 styles × 16 pictures, of which one style is held out."""
    from weft.tensors.keyed import numpy_generator

    pictures: list[np.ndarray] = []
    labels: list[int] = []
    styles: list[str] = []
    for style, fonts in STYLES.items():
        draw = numpy_generator(0, "glyphs", style)
        for label, character in enumerate(CHARACTERS):
            for i in range(EACH):
                mask = shape(character, fonts[i % len(fonts)], style == "outlined")
                pictures.append(_picture(mask, style, draw))
                labels.append(label)
                styles.append(style)
    table = Rows(None, None, np.array(labels), np.arange(len(labels)), styles, Images(pictures))
    key = np.array(styles)
    unseen = {LEFT_OUT: table.take(key == LEFT_OUT)}
    train = table.take(key != LEFT_OUT)
    return Source(
        name="glyphs",
        classes=CHARACTERS,
        train=train,
        unseen=unseen,
        key_name="style",
        fingerprint=fingerprint(CHARACTERS, {"train": train, "unseen": unseen[LEFT_OUT]}),
        notes=(f"glyphs: {len(table)} pictures in {len(STYLES)} styles, drawn from fonts that come with matplotlib.",),
    )


def _picture(mask: np.ndarray, style: str, draw: np.random.Generator) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: a drawing moved, coloured, and treated as its style asks."""
    reach = FINE // 10
    mask = np.roll(mask, draw.integers(-reach, reach + 1, size=2), axis=(0, 1))
    ground = draw.uniform(0, 1, 3)
    ink = draw.uniform(0, 1, 3)
    while abs(ink.mean() - ground.mean()) < 0.35:  # to be read at all
        ground, ink = draw.uniform(0, 1, 3), draw.uniform(0, 1, 3)
    return reduced(laid(np.broadcast_to(ground, (FINE, FINE, 3)), mask, ink, style), style, draw)


def laid(canvas: np.ndarray, mask: np.ndarray, ink: np.ndarray, style: str) -> np.ndarray:
    """A canvas [H, W, 3] with a drawing [H, W] in a colour [3] on it."""
    if style == "shadowed":
        behind = np.roll(mask, (5, 5), axis=(0, 1))[..., None] * 0.6
        canvas = canvas * (1 - behind) + 0.5 * (canvas + ink) * behind
    return np.asarray(canvas * (1 - mask[..., None]) + ink * mask[..., None])


def reduced(canvas: np.ndarray, style: str, draw: np.random.Generator) -> np.ndarray:
    """uint8: a canvas at the size of a picture, with the grain of its style."""
    step = FINE // SIZE
    height, width = canvas.shape[0] // step, canvas.shape[1] // step
    small = canvas.reshape(height, step, width, step, 3).mean((1, 3))
    small = small + draw.normal(0, 0.12 if style == "noisy" else 0.02, small.shape)
    return np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)


@cache
def shape(character: str, font: str, outlined: bool = False) -> np.ndarray:
    """A character as float32 [FINE, FINE], 1 where there is ink; all characters of a font stand on one line."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (FINE, FINE), 0)
    place = (FINE // 2, round(FINE * 0.72))
    pen = ImageDraw.Draw(canvas)
    if outlined:
        pen.text(place, character, font=_font(font), fill=0, stroke_width=3, stroke_fill=255, anchor="ms")
        pen.text(place, character, font=_font(font), fill=0, anchor="ms")
    else:
        pen.text(place, character, font=_font(font), fill=255, anchor="ms")
    found = np.asarray(canvas, np.float32) / 255
    found.setflags(write=False)
    return found


@cache
def _font(name: str) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), round(FINE * 0.75), layout_engine=ImageFont.Layout.BASIC)
