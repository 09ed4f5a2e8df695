"""How alike tasks are, and classes of different tasks, by the vectors that clients tell of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def similar(vectors: Sequence[Tensor | None], power: float) -> Tensor:
    """max(cos, 0)^power, [n, n], of vectors [blocks, n_i], where the cosine is a mean over blocks of what both tell of.

    One without a vector is like itself alone.
    """
    found = torch.eye(len(vectors), dtype=next((v.dtype for v in vectors if v is not None), torch.float32))
    for i, u in enumerate(vectors):
        for j, v in enumerate(vectors[:i]):
            if u is not None and v is not None:
                both = min(u.shape[1], v.shape[1])
                near = F.cosine_similarity(u[:, :both], v[:, :both], dim=1).mean().clamp(min=0)
                found[i, j] = found[j, i] = near**power
    return found


def shared(vectors: Sequence[Tensor], tasks: Sequence[Hashable], power: float, top: int) -> Tensor:
    """[n] of each class the part that others have in its row of similarities: 1 less its largest entry.

    Of a row the ``top`` largest entries count, and are made to sum to 1. Classes of one task have nothing to do with each other.
    """
    if not vectors:
        return torch.zeros(0)
    alike = similar(vectors, power)
    apart = torch.tensor([[a != b or i == j for j, b in enumerate(tasks)] for i, a in enumerate(tasks)])
    best = (alike * apart).topk(min(top, len(vectors)), dim=1).values
    return 1 - best.amax(1) / best.sum(1)
