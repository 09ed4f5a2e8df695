"""LoRA-FAIR's correction of an averaged B: the mean of products is approached with Ā kept, in the clients' factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.aggregation.mean import shares

_TINY = 1e-30


@dataclass(frozen=True)
class Target:
    """What (B̄ + ΔB) Ā is compared with, D = Σ_k p_k B_k A_k, which is never formed.

    Attributes:
        T: D Āᵀ [d_out, r]. G: Ā Āᵀ [r, r]. norm: ‖D‖.
    """

    T: Tensor
    G: Tensor
    norm: float

    @classmethod
    def of(cls, As: Sequence[Tensor], Bs: Sequence[Tensor], weights: Sequence[float], mean_A: Tensor) -> Target:
        """From the clients' factors [r, d_in] and [d_out, r]; in float64."""
        p = shares(weights)
        A, B, mean = [a.double() for a in As], [b.double() for b in Bs], mean_A.double()
        T = sum(w * (b @ (a @ mean.mT)) for w, a, b in zip(p, A, B, strict=True))
        assert isinstance(T, Tensor)
        # ‖D‖² by QRs of the stacked factors: Gram products of all pairs would leave half the digits
        left = torch.linalg.qr(torch.cat([w * b for w, b in zip(p, B, strict=True)], 1), mode="r")[1]
        right = torch.linalg.qr(torch.cat(A).mT, mode="r")[1]
        return cls(T, mean @ mean.mT, float(torch.linalg.vector_norm(left @ right.mT)))

    def cosine(self, X: Tensor) -> float:
        """Between D and X Ā; 0 where either is zero."""
        q = float((X @ self.G * X).sum().clamp(min=0).sqrt())
        return float((self.T * X).sum()) / (self.norm * q) if self.norm * q > _TINY else 0.0


def corrected(target: Target, mean_B: Tensor, penalty: float, steps: int = 1000, rate: float = 0.01) -> Tensor:
    """B̄ + ΔB for the ΔB that minimises 1 - cos(D, (B̄ + ΔB) Ā) + λ ‖ΔB‖ / ‖B̄‖, by proximal gradient steps from ΔB = 0.

    LoRA-FAIR (arXiv 2411.14961), its server step. It is solved for ΔB over ‖B̄‖: the cosine knows no size, so that plain steps of
    SGD on ΔB itself would make as large a change to a B that has just left zero as to one that has grown. The norm's proximal
    step (soft threshold) takes ΔB to zero exactly, where a change does not pay.

    Args:
        mean_B: B̄ [d_out, r]. penalty: λ. rate: of a step, which is halved as long as the objective rises.

    Returns:
        [d_out, r] in float64; B̄ itself where there is nothing to be compared with.
    """
    mean = mean_B.double()
    size = float(torch.linalg.vector_norm(mean))
    if size <= _TINY or target.norm <= _TINY:
        return mean
    T, G = target.T / target.norm, target.G
    start = X = mean / size

    def value(X: Tensor) -> float:
        q = float((X @ G * X).sum().clamp(min=0).sqrt())
        away = float(torch.linalg.vector_norm(X - start))
        return 1.0 - (float((T * X).sum()) / q if q > _TINY else 0.0) + penalty * away

    best, step = value(X), rate
    for _ in range(steps):
        XG = X @ G
        q = float((XG * X).sum().clamp(min=0).sqrt())
        if q <= _TINY:
            break
        slope = float((T * X).sum()) / q**3 * XG - T / q
        while step > 1e-12:
            moved = X - step * slope - start
            away = float(torch.linalg.vector_norm(moved))
            tried = start + moved * (1 - step * penalty / away) if away > step * penalty else start
            found = value(tried)
            if found <= best:
                break
            step /= 2
        else:
            break
        gain, best, X = best - found, found, tried
        if gain <= 1e-15:
            break
        step *= 2
    return mean if X is start else X * size


def ridge(target: Target, mean_B: Tensor, penalty: float) -> Tensor:
    """B̄ + ΔB for the ΔB that minimises ‖D - (B̄ + ΔB) Ā‖² + μ ‖ΔB‖² with μ = λ · tr(Ā Āᵀ) / r, in closed form.

    Not the paper's objective, but smooth, and exact: λ = 0 is the best that any B can do beside this Ā.

    Returns:
        [d_out, r] in float64.
    """
    mean, G = mean_B.double(), target.G
    mu = penalty * float(G.trace()) / len(G)
    if mu <= _TINY:
        return target.T @ torch.linalg.pinv(G, hermitian=True)
    found: Tensor = torch.linalg.solve(G + mu * torch.eye(len(G), dtype=G.dtype), (target.T + mu * mean).mT).mT
    return found
