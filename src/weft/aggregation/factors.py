"""Rules on products of LoRA factors: stacking (FLoRA), redistribution (FlexLoRA), the bias of FedIT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.aggregation.mean import shares, weighted_mean
from weft.tensors.lowrank import LowRank

SVD = tuple[Tensor, Tensor, Tensor]


def stack(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The exact mean of the clients' updates, sum_k p_k s_k B_k A_k, by stacking their factors.

    FLoRA (arXiv 2409.05976): A factors are stacked along the rank, B factors likewise, and each client's
    weight goes into one of the two only (both would give p_k^2). Ranks and scalings s_k = alpha_k / r_k may
    differ, since s_k is part of a :class:`LowRank`. The same mean is the target of FlexLoRA.

    Args:
        deltas: the clients' updates, all [d_out, d_in].
        weights: w_k >= 0, e.g. example counts; p_k = w_k / sum_j w_j.

    Returns:
        [d_out, d_in] at rank sum_k r_k and scale 1.

    Raises:
        ValueError: for updates of different shapes, for weights that :func:`shares` refuses, or without any
            update (an empty round leaves a model as it is).
    """
    return LowRank.cat(delta * p for delta, p in zip(deltas, shares(weights), strict=True))


def redistribute(
    product: LowRank,
    rank: int,
    alpha_over_r: float,
    generator: torch.Generator,
    svd: SVD | None = None,
) -> tuple[Tensor, Tensor]:
    """LoRA factors of a receiver's rank r: alpha/r * B @ A is the best rank-r cut of the averaged product.

    FlexLoRA (arXiv 2402.11505): with product = U S V^T, B = U_r S_r / (alpha/r) and A = V_r^T, all singular
    values in B. Directions beyond the product's own rank get random orthonormal rows in A, orthogonal to
    the others as long as d_in allows, and zero columns in B: with zeros on both sides they would never get
    a gradient. The product's rank counts the singular values above eps * (number of them) * (the largest),
    eps being that of the dtype they were computed in.

    Args:
        product: [d_out, d_in].
        rank: the receiver's rank r, >= 1.
        alpha_over_r: the receiver's LoRA scaling, not 0.
        generator: a CPU generator for the rows without a singular value; not drawn from where there are none.
        svd: ``product.svd(k)`` computed once for many receivers; k no less than the largest of their ranks.

    Returns:
        A [rank, d_in], B [d_out, rank], in the product's dtype (at least float32).

    Raises:
        ValueError: if ``rank`` or ``alpha_over_r`` is out of range, the product is not finite, or ``svd``
            holds fewer triplets than this receiver can use.
    """
    if rank < 1 or alpha_over_r == 0:
        raise ValueError(f"rank must be >= 1 and alpha/r not 0, got {rank} and {alpha_over_r}")
    U, S, Vh = product.svd(rank) if svd is None else svd
    if S.shape[0] < min(rank, product.rank, *product.shape):
        raise ValueError(f"the given svd has {S.shape[0]} triplets, a receiver of rank {rank} needs more")
    noise = torch.finfo(S.dtype).eps * min(product.rank, *product.shape) * S[:1]
    kept = min(rank, int(S.gt(noise).sum()))
    A, B = Vh[:kept], U[:, :kept] * (S[:kept] / alpha_over_r)
    missing = rank - kept
    if missing:
        A = torch.cat([A, _orthonormal_rows(missing, A, generator)])
        B = torch.cat([B, B.new_zeros(B.shape[0], missing)], dim=1)
    return A.contiguous(), B.contiguous()


def aggregation_bias(As: Sequence[Tensor], Bs: Sequence[Tensor], weights: Sequence[float]) -> LowRank:
    """What averaging factors instead of products adds: mean(B) mean(A) - sum_k p_k B_k A_k.

    The known gap of FedIT (arXiv 2305.05644), equal to -sum_k p_k (B_k - mean(B)) (A_k - mean(A)), which is
    how it is formed: no large terms cancel. Multiply by alpha/r for the gap in the weights.

    Args:
        As: the clients' A factors, all [r, d_in].
        Bs: the clients' B factors, all [d_out, r].
        weights: w_k >= 0, e.g. example counts; p_k = w_k / sum_j w_j.

    Returns:
        [d_out, d_in] at rank (number of clients) * r.

    Raises:
        ValueError: for factors of different shapes, or weights that :func:`shares` refuses.
    """
    p = shares(weights)
    mean = weighted_mean(({"A": A, "B": B}, w) for A, B, w in zip(As, Bs, p, strict=True))
    return LowRank.cat(LowRank(B - mean["B"], A - mean["A"], -w) for A, B, w in zip(As, Bs, p, strict=True))


def _orthonormal_rows(count: int, avoid: Tensor, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows [count, d], orthogonal to the rows of ``avoid`` [k, d] while k + count <= d.

    Rows beyond d start over with a fresh orthonormal set, which can be orthogonal only among itself.
    """
    d = avoid.shape[1]
    blocks: list[Tensor] = []
    while count > 0:
        size = min(count, d - avoid.shape[0])
        rows = torch.randn(size, d, generator=generator, dtype=torch.float64).to(avoid)
        for _ in range(2):  # once leaves rounding errors along `avoid`; twice is enough (Kahan, Parlett)
            rows = torch.linalg.qr((rows - (rows @ avoid.mT) @ avoid).mT)[0].mT
        blocks.append(rows)
        count -= size
        avoid = avoid[:0]
    return torch.cat(blocks)
