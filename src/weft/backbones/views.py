"""Views of a picture: random resized crops, some of them mirrored, as many of each as were asked for and always the same.

The crop is that of C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv 1409.4842, with the limits of its usual
code. A view follows from seed, picture and number alone, so that what a frozen tower makes of it is computed once in a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from PIL.Image import Image

RATIO = (3 / 4, 4 / 3)
"""Of the sides of a crop."""
TRIES = 10
"""For a crop that lies within the picture; after them it is the largest one in the middle."""


@dataclass(frozen=True)
class Views:
    """How views of pictures are made.

    Attributes:
        number: of each picture. scale: smallest share of its area. flip: every other one is mirrored, on average.
    """

    number: int
    scale: float
    flip: bool
    seed: int

    def of(self, picture: Image, key: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 [number, 3, H, W].

        Args:
            picture: RGB. key: what stands for it, the same wherever it lies. size: (H, W).
        """
        from PIL import Image

        found = np.empty((self.number, 3, *size), np.uint8)
        for number, view in enumerate(found):
            draw = numpy_generator(self.seed, "view", key, number)
            box = self.box(*picture.size, draw)
            crop = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
            if self.flip and draw.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            view[:] = np.asarray(crop.convert("RGB")).transpose(2, 0, 1)
        return found

    def box(self, width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, upper, right and lower border of a crop."""
        for _ in range(TRIES):
            area = draw.uniform(self.scale, 1) * width * height
            ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, RATIO[0]), RATIO[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
