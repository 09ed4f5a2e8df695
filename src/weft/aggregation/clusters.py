"""Clients sorted into clusters: by how alike their vectors are, or at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist
from torch import Tensor


def by_angle(vectors: Mapping[str, Tensor], n: int) -> dict[str, int]:
    """The cluster of each, of n: agglomerative clustering by average linkage of 1 - cosine (Sokal and Michener, 1958).

    Args:
        vectors: not zero, all of one size; at most n of them are each a cluster.
    """
    if len(vectors) <= n:
        return {name: i for i, name in enumerate(vectors)}
    rows = torch.stack([v.flatten().double() for v in vectors.values()]).numpy()
    found = cut_tree(linkage(pdist(rows, "cosine"), "average"), n_clusters=n)[:, 0]
    return dict(zip(vectors, np.asarray(found).tolist(), strict=True))


def at_random(names: Sequence[str], n: int, generator: torch.Generator) -> dict[str, int]:
    """The cluster of each, of n: of ⌊K/n⌋ names each, and what is left over is in the last one."""
    order = torch.randperm(len(names), generator=generator).tolist()
    size = len(names) // n
    return {names[k]: min(i // size, n - 1) if size else n - 1 for i, k in enumerate(order)}
