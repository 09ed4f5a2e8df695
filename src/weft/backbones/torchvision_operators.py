"""torchvision beside a torch that it was not made for: timm and open_clip need its transforms, and none of its operators.

The wheel on the package index is made for a torch with CUDA. Beside one without, its operators can't be loaded. torchvision
allows for that, but for two of them, which it describes to torch as if they were there: it can't be imported then, nor can any
part of transformers that reads pictures. It can once they are declared. Whoever calls them still learns that they are missing.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")


@functools.cache
def declare() -> None:
    """Make torchvision importable, if it is installed and its operators can't be loaded."""
    found = importlib.util.find_spec("torchvision")
    libraries = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("_C*.so"))
    for library in libraries:
        try:
            torch.ops.load_library(library)
        except OSError:
            for name in OPERATORS:
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
