"""``digits``: the 1,797 handwritten digits, 8×8 grey, that come with scikit-learn (UCI, CC BY 4.0). Nothing is downloaded."""

from __future__ import annotations

import numpy as np

from weft.data.images import Images
from weft.data.rows import Rows, Source, fingerprint


def digits() -> Source:
    """All of them, without a split or a natural client."""
    from sklearn.datasets import load_digits

    found = load_digits()
    classes = tuple("0123456789")
    pictures = np.rint(found.images * (255 / 16)).astype(np.uint8)
    train = Rows(None, None, found.target, np.arange(len(pictures)), images=Images(list(pictures)))
    return Source(
        name="digits",
        classes=classes,
        train=train,
        fingerprint=fingerprint(classes, {"train": train}),
        notes=(f"digits: {len(train)} handwritten digits, from scikit-learn.",),
    )
