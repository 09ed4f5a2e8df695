"""Picture tables: a data set brought to the backbone's size once, normalised a batch at a time."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from weft.backbones.backbone import Backbone
    from weft.backbones.views import Views
    from weft.data.images import Images
    from weft.data.rows import Rows

AT_ONCE = 1 << 26  # pixels decoded at a time: pictures of a telephone have 12 million each
IN_MEMORY = 2 << 30  # bytes of pictures beyond which a table lies in a temporary file


@dataclass(frozen=True)
class Pixels:
    """n pictures of one size, and views of them: that of number v of row i is row i + n v, which counts as a row of its own
    wherever rows are looked up, and not among the rows that there are.

    Attributes:
        values: uint8 [n (1 + views), 3, H, W]; what else is told of rows is as long. mean, std: float32 [3], of values scaled to
            0–1. views: of each row, beside the row as it is.
        tokens: that the backbone makes of a picture.
        others: the same rows as further encoders take them, which stand beside the first one.
        labels: int64 [n]. row_ids: int64 [n], stable keys of the rows within their source.
        allowed: bool [n, C], the classes that each row may have; None = all. numbers: float64 [n], of a regression.
    """

    values: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    tokens: int
    labels: np.ndarray
    row_ids: np.ndarray
    allowed: np.ndarray | None = None
    numbers: np.ndarray | None = None
    views: int = 0
    others: tuple[Pixels, ...] = ()
    file: Any = field(default=None, repr=False)  # keeps a temporary file alive

    def __len__(self) -> int:
        return len(self.labels) // (1 + self.views)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.full(len(self.labels), self.tokens)

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """As of :attr:`weft.backbones.token_table.Tokens.spans`."""
        return np.stack([self.lengths, np.zeros_like(self.lengths)], -1)[:, None]

    @property
    def groups(self) -> np.ndarray | None:
        """As of :attr:`weft.backbones.token_table.Tokens.groups`: none."""
        return None

    def row_of(self, index: np.ndarray) -> np.ndarray:
        """The rows that ``index`` are views of; -1 = padding."""
        return np.where(index < 0, index, index % max(len(self), 1))

    def viewed(self, index: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The views of rows, by their numbers from 0; where there are none, the rows. Both of one shape; -1 = padding."""
        if not self.views:
            return index
        return np.where(index < 0, index, self.row_of(index) + len(self) * (1 + number % self.views))

    def beside(self, index: np.ndarray) -> torch.Tensor | None:
        """As of :meth:`weft.backbones.token_table.Tokens.beside`: none."""
        return None

    def collate(self, index: np.ndarray, width: int | None = None) -> dict[str, torch.Tensor]:
        """Model inputs for the rows ``index`` ([m]; -1 = an empty padding row): ``pixel_values`` float32 [m, 3, H, W]; and of
        the encoders beside the first one, by :func:`values_of`.
        """
        found = np.zeros((len(index), *self.values.shape[1:]), dtype=np.float32)
        present = index >= 0
        scaled = self.values[index[present]].astype(np.float32) / 255
        found[present] = (scaled - self.mean[:, None, None]) / self.std[:, None, None]
        beside = {values_of(i): one.collate(index)[values_of(0)] for i, one in enumerate(self.others, 1)}
        return {values_of(0): torch.from_numpy(found)} | beside

    def another(self, index: np.ndarray) -> np.ndarray:
        """Of views the next ones of the same rows."""
        return self.viewed(index, index // max(len(self), 1))


def values_of(encoder: int) -> str:
    """What a model calls the pictures of one of its encoders, by its number."""
    return f"pixel_values_{encoder}" if encoder else "pixel_values"


def pixels(backbone: Backbone, rows: Rows, views: Views | None = None) -> Pixels:
    """Resize and crop pictures as the backbone's own image processor does, or those of its encoders; what these make random stays
    off.

    Args:
        views: are made of each picture too.

    Raises:
        UserError: a file that is no picture, or one that can't be shown faithfully.
    """
    assert rows.images is not None
    if backbone.encoders:
        first, *others = (pixels(encoder, rows, views) for encoder in backbone.encoders)
        return replace(first, tokens=backbone.picture_tokens, others=tuple(others))
    processor = backbone.processor
    shape = picture_shape(backbone.model.config, processor)
    store: Any = None
    many = 0 if views is None else views.number
    every = len(rows) * (1 + many)
    if every * int(np.prod(shape)) > IN_MEMORY:
        store = tempfile.TemporaryFile(prefix="weft-pixels-")  # noqa: SIM115 - goes with the table
        values: np.ndarray = np.memmap(store, np.uint8, "w+", shape=(every, *shape))
    else:
        values = np.empty((every, *shape), np.uint8)
    start = 0
    for batch in _batches(rows.images):
        # told where the channels are, for a picture three pixels high or wide could be either way round
        out = processor(
            images=batch, do_rescale=False, do_normalize=False, return_tensors="np", input_data_format="channels_last"
        )["pixel_values"]
        if out.shape[1:] != shape:
            raise UserError(
                f'the image processor of "{backbone.name}" makes pictures of {out.shape[2]}×{out.shape[3]} pixels, but the '
                f"backbone takes {shape[1]}×{shape[2]}: correct its preprocessor_config.json."
            )
        values[start : start + len(batch)] = np.clip(np.rint(out), 0, 255)
        for i, picture in enumerate(batch if views is not None else (), start):
            values[i + len(rows) :: len(rows)] = views.of(picture, rows.images.digest(i), shape[1:])  # type: ignore[union-attr]
        start += len(batch)
    normalise = bool(getattr(processor, "do_normalize", True))
    mean, std = (processor.image_mean, processor.image_std) if normalise else (0.0, 1.0)
    return Pixels(
        values,
        np.broadcast_to(np.asarray(mean, np.float32), 3).copy(),
        np.broadcast_to(np.asarray(std, np.float32), 3).copy(),
        backbone.picture_tokens,
        np.tile(np.asarray(rows.labels, dtype=np.int64), 1 + many),
        np.tile(np.asarray(rows.ids, dtype=np.int64), 1 + many),
        None if rows.allowed is None else np.tile(rows.allowed, (1 + many, 1)),
        None if rows.numbers is None else np.tile(rows.numbers, 1 + many),
        many,
        file=store,
    )


def squared(where: str, trust: bool, side: Callable[[Any], int]) -> Any:
    """The image processor of a checkpoint, made to bring pictures to a square.

    Args:
        side: of the square, in pixels, by the checkpoint's own processor.
    """
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    own = AutoImageProcessor.from_pretrained(where, trust_remote_code=trust, backend="pil")
    size = dict.fromkeys(("height", "width"), side(own))
    kept = ("resample", "do_normalize", "image_mean", "image_std")
    return ViTImageProcessorPil(size=size, **{name: getattr(own, name) for name in kept})


def _batches(images: Images) -> Iterator[list[Image]]:
    """The decoded pictures, as many at a time as make up no more than AT_ONCE pixels."""
    batch: list[Image] = []
    area = 0
    for i in range(len(images)):
        picture = images[i]
        batch.append(picture)
        area += picture.width * picture.height
        if area >= AT_ONCE or len(batch) == 256:
            yield batch
            batch, area = [], 0
    if batch:
        yield batch


def picture_shape(config: Any, processor: Any) -> tuple[int, int, int]:
    """(3, H, W) that a backbone takes."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:  # a convolutional network takes any size: the processor decides
        wanted = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        size = (wanted["height"], wanted["width"]) if "height" in wanted else (wanted["shortest_edge"],) * 2
    height, width = (size, size) if isinstance(size, int) else size
    return 3, int(height), int(width)
