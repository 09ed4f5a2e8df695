"""New rows that are orthogonal to earlier ones and to each other."""

from __future__ import annotations

import torch
from torch import Tensor


def beside(earlier: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Rows of unit length, [rows, d], orthogonal to each other and to those of ``earlier`` ([n, d], of any length).

    Drawn at random, and made so by Householder's reflections, which lose no digits as Gram-Schmidt does. Where d is too small for
    all of them, new rows are orthogonal to each other alone, and where it is too small for that too, d at a time.
    """
    d = earlier.shape[1]
    left = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    if len(earlier) and len(earlier) + rows <= d:
        basis = torch.linalg.qr(earlier.to(torch.float64).T)[0]
        for _ in range(2):  # once leaves what rounding has left
            left = left - left @ basis @ basis.T
    found = [torch.linalg.qr(left[i : i + d].T)[0].T for i in range(0, rows, d)]
    return torch.cat(found).to(earlier.dtype) if found else earlier[:0].clone()
