"""The leading singular triplets of a dense matrix, for start values that are cut from a pretrained weight."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLE, ITERATIONS = 16, 6


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
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    sign = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    return u * sign, s, vh * sign[:, None]
