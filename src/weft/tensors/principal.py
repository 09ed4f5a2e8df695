"""The leading singular triplets of a matrix, dense or sparse, for start values that are cut from it."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

OVERSAMPLE, ITERATIONS = 16, 6
DENSE = 512
"""A sparse matrix with no longer a shorter side is written out."""
ROUNDING = 1e-7
"""A singular value below this share of the largest one is taken to be 0."""


def principal(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, k], S [k] descending, Vh [k, d_in] of a matrix [d_out, d_in]; k = min(rank, d_out, d_in).

    Exact where the rank is not far below the matrix's own. Else by randomised subspace iteration (Halko, Martinsson, Tropp, SIAM
    Review 2011, algorithms 4.4 and 5.1), a hundred times faster at a width of 4096. Signs are chosen: the largest entry of each
    row of Vh is positive.

    Args:
        generator: a CPU generator, drawn from in any case.
    """
    d_out, d_in = weight.shape
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    start = torch.randn(d_in, min(rank + OVERSAMPLE, d_in), generator=generator, dtype=torch.float64).to(wide)
    if 4 * (rank + OVERSAMPLE) >= min(d_out, d_in):
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    else:
        q = torch.linalg.qr(wide @ start)[0]
        for _ in range(ITERATIONS):
            q = torch.linalg.qr(wide.mT @ q)[0]
            q = torch.linalg.qr(wide @ q)[0]
        small, s, vh = torch.linalg.svd(q.mT @ wide, full_matrices=False)
        u = q @ small
    return _signed(u[:, :rank], s[:rank], vh[:rank])


def principal_of_entries(
    values: Tensor, places: Tensor, shape: tuple[int, int], rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`principal` in float64, of a matrix that is 0 but for ``values`` [n] in the rows and columns ``places`` [2, n].

    Exact: entries at random places have a flat spectrum, on which the iterations of :func:`principal` would settle for less. Of a
    large matrix by Lanczos' method, from its products with vectors alone. k is never more than the matrix's own rank.

    Args:
        generator: a CPU generator, drawn from in any case.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import ArpackError, svds

    start = torch.randn(min(shape), generator=generator, dtype=torch.float64)
    values, (rows, columns) = values.detach().to("cpu", torch.float64), places.to("cpu", torch.int64)
    found: tuple[Tensor, ...] | None = None
    if min(shape) > max(DENSE, 4 * rank):
        sparse = csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape=shape)
        with suppress(ArpackError):  # it has not converged
            found = tuple(torch.from_numpy(part.copy()) for part in svds(sparse, rank, v0=start.numpy()))
    if found is None:
        found = torch.linalg.svd(values.new_zeros(shape).index_put((rows, columns), values), full_matrices=False)
    u, s, vh = found
    order = s.argsort(descending=True)[:rank]
    order = order[s[order] > ROUNDING * s.max()]
    return _signed(u[:, order], s[order], vh[order])


def _signed(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With the largest entry of each row of Vh positive."""
    sign = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    return u * sign, s, vh * sign[:, None]
