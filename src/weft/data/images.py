"""Pictures of a data set: decoded when asked for, so that a large set costs no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from weft.data.decoding import Unshowable, decode, size_of
from weft.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Found = TypeVar("Found")
Item = Any
"""One picture: pixels [h, w], [h, w, 3] or [h, w, 4] (uint8; [h, w] also uint16 or bool), Pillow's own object, a file, the bytes
of one, or a function without arguments that fetches a file or bytes when asked."""


class Images:
    """n pictures.

    Args:
        items: each of any size and kind, see :data:`Item`; names of files may be strings.

    Raises:
        UserError: one of them is no picture. Files and bytes are only opened when they are asked for.
    """

    def __init__(self, items: Iterable[Item]):
        self._items = [_checked(item, i) for i, item in enumerate(_several(items))]
        self._digests: list[str | None] = [None] * len(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Image:
        """A decoded picture, RGB, as :func:`weft.data.decoding.decode` shows it.

        Raises:
            UserError: the file is missing, no picture, broken, or has values that can't be shown faithfully.
        """
        return self._read(index, decode)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a picture in pixels, the right way up; of a file its head alone is read.

        Raises:
            UserError: the file is missing, no picture, or broken at its head.
        """
        return self._read(index, size_of)

    def _read(self, index: int, how: Callable[[Any], Found]) -> Found:
        item = self._items[index]
        name = getattr(item, "called", f"picture {index}")
        try:
            if callable(item):
                item = item()
            if isinstance(item, Path):
                name = str(item)
            return how(item)
        except UserError:
            raise
        except Unshowable as e:
            raise UserError(f"{name} can't be shown faithfully: {e}.") from e
        except FileNotFoundError as e:
            raise UserError(f"{name} does not exist: check the name.") from e
        except Exception as e:  # the decoders of broken files raise all kinds, from struct.error to ZeroDivisionError
            said = str(e).strip().split("\n")[0][:200].rstrip(".") or type(e).__name__
            raise UserError(f"{name} can't be read as a picture ({said}): remove it or save it anew.") from e

    def take(self, index: Iterable[int]) -> Images:
        """The pictures at these positions, in that order."""
        found = Images(())
        for i in index:
            found._items.append(self._items[i])
            found._digests.append(self._digests[i])
        return found

    def key(self, index: int) -> Hashable:
        """What tells a picture from others, without opening a file."""
        item = self._items[index]
        return item if isinstance(item, Path | bytes) or hasattr(item, "called") else self.digest(index)

    def digest(self, index: int) -> str:
        """sha256 of one picture's pixels or file, for the fingerprint of a set and to tell repeats; read once.

        Raises:
            UserError: the file is missing.
        """
        found = self._digests[index]
        if found is None:
            found = self._digests[index] = hashlib.sha256(self._content(index)).hexdigest()
        return found

    def _content(self, index: int) -> bytes:
        item = self._items[index]
        try:
            if callable(item):
                item = item()
            if isinstance(item, bytes):
                return item
            if isinstance(item, Path):
                return item.read_bytes()
        except OSError as e:
            raise UserError(f"{item if isinstance(item, Path) else f'picture {index}'} can't be read ({e.strerror or e}).") from e
        if hasattr(item, "convert"):
            item = np.asarray(item)
        return repr((item.shape, str(item.dtype))).encode() + np.ascontiguousarray(item).tobytes()

    @staticmethod
    def concatenate(parts: Sequence[Images]) -> Images:
        found = Images(())
        for part in parts:
            found._items += part._items
            found._digests += part._digests
        return found


def _several(items: Any) -> Iterable[Any]:
    if isinstance(items, str | bytes | Path) or hasattr(items, "convert"):
        raise UserError("give a list of pictures, even for a single one: [picture].")
    return items


def _checked(item: Any, position: int) -> Item:
    """The item, a file as a Path.

    Raises:
        UserError: it is no picture.
    """
    if isinstance(item, Path | bytes) or callable(item) or hasattr(item, "convert"):
        return item
    if isinstance(item, str):
        return Path(item).expanduser()
    if isinstance(item, np.ndarray):
        if item.ndim == 3 and item.shape[2] == 1:
            item = item[:, :, 0]
        grey = item.ndim == 2 and item.dtype in (np.uint8, np.uint16, np.bool_)
        if item.size and (grey or (item.ndim == 3 and item.dtype == np.uint8 and item.shape[2] in (3, 4))):
            return item
    what = f"{item.dtype} of shape {list(item.shape)}" if isinstance(item, np.ndarray) else f"a {type(item).__name__}"
    raise UserError(
        f"picture {position} is {what}: a picture must be a file, a PIL image, encoded bytes, or pixels [h, w] or [h, w, 3], "
        "uint8 from 0 to 255."
    )
