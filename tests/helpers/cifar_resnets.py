"""Small ResNets for CIFAR-10 as files of arrays, and what they compute in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def arrays(depth: int = 2, width: int = 4, classes: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors as pytorch_resnet_cifar10 calls them."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def layer(conv: str, norm: str, d_in: int, d_out: int) -> None:
        found[f"{conv}.weight"] = rng.normal(0, (2 / (9 * d_in)) ** 0.5, (d_out, d_in, 3, 3)).astype(np.float32)
        for role, middle in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            found[f"{norm}.{role}"] = rng.uniform(middle - 0.5, middle + 0.5, d_out).astype(np.float32)

    layer("conv1", "bn1", 3, width)
    for stage in range(3):
        d = width * 2**stage
        for i in range(depth):
            name = f"layer{stage + 1}.{i}"
            layer(f"{name}.conv1", f"{name}.bn1", d // 2 if stage and not i else d, d)
            layer(f"{name}.conv2", f"{name}.bn2", d, d)
    found["linear.weight"] = rng.normal(0, 0.5, (classes, 4 * width)).astype(np.float32)
    found["linear.bias"] = rng.normal(0, 0.5, classes).astype(np.float32)
    return found


def saved(path: Path, content: Arrays | None = None) -> str:
    np.savez(path, **(arrays() if content is None else content))  # type: ignore[arg-type]
    return str(path)


def logits(w: Arrays, pictures: np.ndarray) -> np.ndarray:
    """[n, C] of normalised pictures [n, 3, H, W]."""

    def convolved(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwij,dcij->ndhw", windows, w[f"{name}.weight"])

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        g, b, m, v = (w[f"{name}.{r}"][:, None, None] for r in ("weight", "bias", "running_mean", "running_var"))
        return (x - m) / np.sqrt(v + 1e-5) * g + b

    x = np.maximum(normed(convolved(pictures, "conv1"), "bn1"), 0)
    for stage in (1, 2, 3):
        depth = len({n.split(".")[1] for n in w if n.startswith(f"layer{stage}.")})
        for i in range(depth):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and not i else 1
            h = np.maximum(normed(convolved(x, f"{name}.conv1", stride), f"{name}.bn1"), 0)
            h = normed(convolved(h, f"{name}.conv2"), f"{name}.bn2")
            x = x[:, :, ::stride, ::stride]
            more = (h.shape[1] - x.shape[1]) // 2
            x = np.maximum(h + np.pad(x, ((0, 0), (more, more), (0, 0), (0, 0))), 0)
    return x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
