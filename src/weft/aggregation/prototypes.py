"""Prototypes: what stands for the embeddings of one class."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Way = Literal["mean", "random", "cluster"]


def pick(z: Tensor, how: Way, share: float, generator: torch.Generator) -> Tensor:
    """Prototypes of embeddings [n, p] of one class, n ≥ 1.

    Args:
        how: ``mean`` -> [1, p]; ``random``: ⌈share·n⌉ of them; ``cluster``: that many k-means centres (in the order of their
            first member).
    """
    if how == "mean":
        return z.mean(0, keepdim=True)
    count = min(max(math.ceil(share * len(z)), 1), len(z))
    if how == "random":
        return z[torch.randperm(len(z), generator=generator)[:count].sort().values]
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31, (), generator=generator))
    distinct = len(torch.unique(z, dim=0))
    found = KMeans(min(count, distinct), random_state=seed, n_init=1).fit(z.double().numpy())
    members = torch.from_numpy(found.labels_)
    return torch.stack([z[members == c].mean(0) for c in dict.fromkeys(members.tolist())])
