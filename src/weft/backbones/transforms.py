"""An image processor that is made of the transforms which timm and open_clip have for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


class Transforms:
    """Called as the image processors of transformers are.

    Args:
        composed: transforms of torchvision, of which those before the one to a tensor resize and crop. size: (H, W) of what they
            make. mean, std: of values from 0 to 1.
    """

    def __init__(self, composed: Any, size: Sequence[int], mean: Sequence[float], std: Sequence[float]):
        names = [type(t).__name__ for t in composed.transforms]
        self._steps = composed.transforms[: next(i for i, name in enumerate(names) if name.endswith("ToTensor"))]
        self.size = {"height": int(size[0]), "width": int(size[1])}
        self.image_mean, self.image_std = list(mean), list(std)

    def __call__(
        self, images: Sequence[Any], do_rescale: bool = True, do_normalize: bool = True, **_: Any
    ) -> dict[str, np.ndarray]:
        """
        Args:
            images: pictures, or arrays [H, W, 3] of bytes.

        Returns:
            ``pixel_values``, float32 [n, 3, H, W].
        """
        values = np.stack([self._resized(image) for image in images])
        if do_rescale:
            values /= 255
        if do_normalize:
            mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.image_mean, self.image_std))
            values = (values - mean) / std
        return {"pixel_values": values}

    def _resized(self, image: Any) -> np.ndarray:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        for step in self._steps:
            picture = step(picture)
        return np.asarray(picture, np.float32).transpose(2, 0, 1)
