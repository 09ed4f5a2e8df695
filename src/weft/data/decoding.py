"""One picture as RGB pixels: the way round that a camera noted, over its whole range of values, or refused."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Found = TypeVar("Found")
# Pillow opens these and either hands them to another program (Ghostscript would run what a file says), or has nothing but a
# stub for them.
UNREAD = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "PDF"})
FEWEST_LEVELS = 32  # grey levels that must be left of more than 256: values of 12 bits in a file of 16 keep 17
STRIP = 200  # how many times as long as wide a picture may be: a processor that scales by the short side would need that memory


class Unshowable(ValueError):
    """A picture whose values can't be brought to 8 bits faithfully; says why and what to do."""


@functools.cache
def formats() -> dict[str, str]:
    """The format of each suffix (small letters, with its dot) that the Pillow installed here can read."""
    from PIL import Image

    return {
        suffix: name
        for suffix, name in Image.registered_extensions().items()  # loads all of Pillow's plugins
        if name in Image.OPEN and name not in UNREAD
    }


def decode(item: Any) -> Image:
    """A picture, RGB: from uint8 or uint16 pixels, a file, the bytes of one, or Pillow's own object.

    Raises:
        Exception: whatever one of Pillow's decoders raises for a file that is broken; they keep to no class.
        Unshowable: its values have no faithful form in 8 bits.
    """
    return _opened(item, rgb)


def size_of(item: Any) -> tuple[int, int]:
    """Width and height of a picture, turned as its EXIF orientation says; of a file nothing but the head is read.

    Raises:
        Exception: as of :func:`decode`.
    """

    def upright(picture: Image) -> tuple[int, int]:
        from PIL.Image import Transpose

        on_its_side = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
        width, height = picture.size
        return (height, width) if _orientation(picture) in on_its_side else (width, height)

    return _opened(item, upright)


def _opened(item: Any, fn: Callable[[Image], Found]) -> Found:
    """What a function makes of a picture while its file is open."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on palettes and on metadata that it skips: the pixels are whole, or it raises
        if isinstance(item, np.ndarray):
            return fn(Image.fromarray(item))
        if hasattr(item, "convert"):
            return fn(item)
        formats()  # loads the plugins
        known = [name for name in Image.OPEN if name not in UNREAD]
        # never by its name: Pillow maps such a file into memory, and then turns a TIFF that lies on its side wrongly
        with io.BytesIO(item) if isinstance(item, bytes) else open(item, "rb") as file:
            return fn(Image.open(file, formats=known))


def rgb(picture: Image) -> Image:
    """A decoded picture as RGB, turned as its EXIF orientation says.

    16-bit values are scaled by their whole range, floats from 0 to 1 likewise; what is transparent shows white, or black where
    all that is drawn is white.

    Raises:
        Unshowable: numbers without a known white, or so few of its grey levels left that it would not be the same picture.
    """
    from PIL import Image

    picture.load()  # turns TIFFs, and takes their orientation away
    if max(picture.size) > STRIP * min(picture.size):
        raise Unshowable(f"it is {picture.width}×{picture.height} pixels, a strip that no backbone can see: cut it into parts")
    turned = picture.transpose(way) if (way := _orientation(picture)) is not None else picture
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(turned), picture)).convert("RGB")
    if picture.has_transparency_data:
        return _opaque(turned.convert("RGBA"))
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def _orientation(picture: Image) -> Any:
    """How to turn a picture upright, None where it is or does not say."""
    from PIL.Image import Transpose

    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return ways.get(picture.getexif().get(0x0112, 1))
    except Exception:  # metadata that nobody can read turn nothing, as in every viewer; the pixels are whole
        return None


def _opaque(picture: Image) -> Image:
    from PIL import Image

    if picture.getchannel("A").getextrema()[0] == 255:
        return picture.convert("RGB")

    def over(colour: str) -> Any:
        return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")

    shown = over("white")
    return over("black") if all(low >= 250 for low, _ in shown.getextrema()) else shown


def _eight_bits(values: np.ndarray, picture: Image) -> np.ndarray:
    """Grey values [h, w] of more than 8 bits, rounded to uint8."""
    tags = getattr(picture, "tag_v2", {})  # of TIFF
    if picture.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise Unshowable("its floats are not all from 0 to 1, so that nothing tells its white: save it with 8 bits")
        white = 1
    elif picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        raise Unshowable("its numbers are signed or of 32 bits, so that nothing tells its white: save it with 8 bits")
    else:
        white = 2 ** int(np.max(tags.get(258, 16))) - 1  # a TIFF may say 12 bits of 16
    shown = np.clip(np.rint(values.astype(np.float64) * (255 / white)), 0, 255).astype(np.uint8)
    left = int(shown.max()) - int(shown.min()) + 1
    if left < FEWEST_LEVELS and float(values.max()) - float(values.min()) > 255:
        raise Unshowable(
            f"its values are from {values.min()} to {values.max()} of {white}, of which 8 bits would leave {left} grey levels: "
            "scale them to the whole range, or save it with 8 bits"
        )
    return 255 - shown if tags.get(262) == 0 else shown  # white is zero
