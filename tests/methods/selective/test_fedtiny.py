"""FedTiny."""

from __future__ import annotations

TINY = {"candidates": 1, "every": 2, "density": 0.5, "tune.kind": "bottleneck", "tune.reduction": 8}
