"""Product quantisation: a vector is cut into slots, and each slot is written as the number of its nearest centroid.

H. Jégou, M. Douze, C. Schmid, "Product quantization for nearest neighbor search", TPAMI 2011; with a rotation that is fitted
along (OPQ, non-parametric): T. Ge, K. He, Q. Ke, J. Sun, "Optimized product quantization", TPAMI 2014. In NumPy, double
precision.
"""

from __future__ import annotations

import numpy as np

STEPS = 25
"""Of k-means (Lloyd), at most."""


def fit(vectors: np.ndarray, slots: int, centroids: int, rotations: int = 0, seed: int = 0) -> np.ndarray:
    """Codes int64 [n, slots] below ``centroids`` of vectors [n, d], by centroids that are fitted to these very vectors.

    A dimension that ``slots`` does not divide is filled up with zeros. Equal vectors have equal codes.

    Args:
        rotations: times that the rotation is fitted to the codes and they to it; 0 = none.
    """
    n, d = vectors.shape
    x = np.zeros((n, -(-d // slots) * slots))
    x[:, :d] = vectors
    x -= x.mean(0)
    draw = np.random.default_rng(seed)
    rotation = np.eye(x.shape[1])
    books: list[np.ndarray] | None = None
    codes = np.zeros((n, slots), dtype=np.int64)
    for _ in range(rotations + 1):
        parts = np.split(x @ rotation, slots, axis=1)
        if books is None:
            books = [_begun(part, centroids, draw) for part in parts]
        fitted = [_k_means(part, book) for part, book in zip(parts, books, strict=True)]
        books = [book for book, _ in fitted]
        codes = np.stack([code for _, code in fitted], 1)
        near = np.concatenate([book[code] for book, code in fitted], 1)
        u, _, vt = np.linalg.svd(x.T @ near)  # the rotation that brings x nearest to it (Procrustes)
        rotation = u @ vt
    return codes


def _begun(x: np.ndarray, k: int, draw: np.random.Generator) -> np.ndarray:
    """Centroids [≤ k, d] to begin with, far from each other: k-means++ (D. Arthur, S. Vassilvitskii, SODA 2007)."""
    chosen = [int(draw.integers(len(x)))]
    far = np.square(x - x[chosen[0]]).sum(1)
    while len(chosen) < k and far.max() > 1e-12:
        chosen.append(int(draw.choice(len(x), p=far / far.sum())))
        far = np.minimum(far, np.square(x - x[chosen[-1]]).sum(1))
    return x[chosen]


def _k_means(x: np.ndarray, book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's steps from these centroids: theirs, and the nearest one of each row [n]."""
    book, code = book.copy(), nearest(x, book)
    for _ in range(STEPS):
        count = np.bincount(code, minlength=len(book))
        total = np.zeros_like(book)
        np.add.at(total, code, x)
        book[count > 0] = total[count > 0] / count[count > 0, None]
        before, code = code, nearest(x, book)
        if np.array_equal(before, code):
            break
    return book, code


def nearest(x: np.ndarray, book: np.ndarray) -> np.ndarray:
    """The number of the nearest centroid of each row, int64 [n]; the first of several that are as near."""
    found: np.ndarray = (np.square(book).sum(1) - 2 * x @ book.T).argmin(1)
    return found
