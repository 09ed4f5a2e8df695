"""Pictures of a data set: decoded when asked for, so that a large set costs no memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Item = np.ndarray | Path | bytes | Callable[[], bytes | Path]
"""One picture: uint8 pixels [h, w] or [h, w, 3], a file, the bytes of one, or a function that fetches these when asked."""


class Images:
    """n pictures.

    Args:
        items: pixels, files, encoded bytes or functions that fetch either, of any size each.
    """

    def __init__(self, items: Sequence[Item]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def _item(self, index: int) -> np.ndarray | Path | bytes:
        item = self._items[index]
        return item() if callable(item) else item

    def __getitem__(self, index: int) -> Image:
        """A decoded picture, RGB.

        Raises:
            UserError: the file is missing or no picture.
        """
        from PIL import Image, UnidentifiedImageError

        item = self._item(index)
        try:
            if isinstance(item, np.ndarray):
                return Image.fromarray(item).convert("RGB")
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as opened:
                return opened.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
            which = str(item) if isinstance(item, Path) else f"picture {index}"
            raise UserError(f"{which} can't be read as a picture ({e}): remove it or save it anew.") from e

    def take(self, index: Iterable[int]) -> Images:
        """The pictures at these positions, in that order."""
        return Images([self._items[i] for i in index])

    def digest(self, index: int) -> str:
        """sha256 of one picture's pixels or file, for the fingerprint of a set.

        Raises:
            UserError: the file is missing.
        """
        item = self._item(index)
        if isinstance(item, np.ndarray):
            return hashlib.sha256(repr((item.shape, str(item.dtype))).encode() + np.ascontiguousarray(item).tobytes()).hexdigest()
        if isinstance(item, bytes):
            return hashlib.sha256(item).hexdigest()
        try:
            return hashlib.sha256(item.read_bytes()).hexdigest()
        except OSError as e:
            raise UserError(f"{item} can't be read ({e.strerror or e}): check the file.") from e

    @staticmethod
    def concatenate(parts: Sequence[Images]) -> Images:
        return Images([item for part in parts for item in part._items])
