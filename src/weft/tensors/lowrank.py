"""Low-rank matrices as a value: sums, norms and truncations of ``scale * B @ A`` without building ``B @ A``.

Adding LoRA updates is concatenation of their factors; cutting the sum to a rank is two thin QRs and one
small SVD. While the stored rank R stays below min(d_out, d_in), nothing here but :meth:`LowRank.dense`
creates a tensor with as many elements as the full matrix. From R = min(d_out, d_in) on that is out of
reach, because a single factor is by then as large as the matrix: all operations stay exact, but no longer
pay. :meth:`LowRank.compress` brings a sum to rank min(d_out, d_in), where its factors are at most twice the
dense size; :mod:`weft.tensors.growing` says when, for a sum that grows forever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Sums over clients have flat spectra: without iterations the randomised range misses too much.
_SUBSPACE_ITERATIONS = 2

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix ``scale * B @ A`` of shape [d_out, d_in], kept as its factors.

    A LoRA update with factors A, B and scaling alpha/r is ``LowRank(B, A, alpha / r)``: the scaling is part
    of the value, so that no rule working on values can forget it. Operations return new values and never
    write into the factors; those that compute (all but ``*``, :meth:`rescaled` and :meth:`to`) do so in
    float32 or better, promoting half-precision factors.

    Attributes:
        B: [d_out, R], floating point.
        A: [R, d_in], same dtype and device.
        scale: a finite number, e.g. LoRA's alpha/r.

    Raises:
        ValueError: if the factors do not fit each other.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.B.dim() != 2 or self.A.dim() != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(f"factors B {tuple(self.B.shape)} and A {tuple(self.A.shape)} have no product")
        if not self.B.is_floating_point() or self.B.dtype != self.A.dtype or self.B.device != self.A.device:
            raise ValueError(
                "factors must share a floating-point dtype and a device, "
                f"not B {self.B.dtype} on {self.B.device} and A {self.A.dtype} on {self.A.device}"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, not {self.scale}")

    @classmethod
    def zeros(
        cls,
        d_out: int,
        d_in: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LowRank:
        """The zero matrix [d_out, d_in], stored at rank 0."""
        B = torch.zeros(d_out, 0, dtype=dtype, device=device)
        return cls(B, torch.zeros(0, d_in, dtype=dtype, device=device))

    @classmethod
    def cat(cls, items: Iterable[LowRank], shape: tuple[int, int] | None = None) -> LowRank:
        """The exact sum of ``items`` by concatenation: rank = sum of their ranks, scale 1.

        Each item's scale is multiplied into its own B, so that items of different scales add up right.

        Args:
            items: values of one shape, on one device.
            shape: (d_out, d_in); needed only where ``items`` may be empty, and checked where it is not.

        Raises:
            ValueError: for items of different shapes, or none at all without a ``shape``.
        """
        parts = [item._computable() for item in items]
        if not parts:
            if shape is None:
                raise ValueError("a sum of no items needs a shape")
            return cls.zeros(*shape)
        expected = parts[0].shape if shape is None else tuple(shape)
        for part in parts:
            if part.shape != expected:
                raise ValueError(f"cannot add matrices of shapes {expected} and {part.shape}")
        B = torch.cat([part.B * part.scale for part in parts], dim=1)
        return cls(B, torch.cat([part.A for part in parts], dim=0))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """The stored rank R; the matrix's own rank may be lower."""
        return self.A.shape[0]

    @property
    def numel(self) -> int:
        """Stored elements, R * (d_out + d_in)."""
        return self.B.numel() + self.A.numel()

    def __add__(self, other: LowRank) -> LowRank:
        return LowRank.cat((self, other))

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.B, self.A, self.scale * factor)

    __rmul__ = __mul__

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRank:
        """The same value on another device or in another dtype."""
        return LowRank(self.B.to(device=device, dtype=dtype), self.A.to(device=device, dtype=dtype), self.scale)

    def rescaled(self, scale: float) -> LowRank:
        """The same value stored with another ``scale``, e.g. the alpha/r of the layer that is to receive it.

        Raises:
            ValueError: if ``scale`` is 0.
        """
        if scale == 0:
            raise ValueError("a value cannot be stored with scale 0")
        return LowRank(self.B * (self.scale / scale), self.A, scale)

    def dense(self) -> Tensor:
        """The full matrix [d_out, d_in]: for tests, reports and merging, never inside a rule."""
        value = self._computable()
        return (value.B @ value.A) * value.scale

    def compress(self, keep: int = 0) -> LowRank:
        """The same value at rank min(d_out, d_in) if more is stored, else this value itself.

        One QR of the factor on the short side; the other factor takes up the triangle. On the short side
        the result has orthonormal rows (of A, if d_in <= d_out) or columns (of B).

        Args:
            keep: the last so many columns of B and rows of A stay as they are, beside the rest at rank min(d_out, d_in).

        Raises:
            ValueError: if ``keep`` is not in 0..R.
        """
        if not 0 <= keep <= self.rank:
            raise ValueError(f"keep must be in 0..{self.rank}, not {keep}")
        if keep:
            cut = self.rank - keep
            old, value = LowRank(self.B[:, :cut], self.A[:cut], self.scale), self._computable()
            small = old.compress()
            if small is old:
                return self
            B, A = torch.cat([small.B, value.B[:, cut:]], dim=1), torch.cat([small.A, value.A[cut:]])
            return LowRank(B, A, self.scale)
        d_out, d_in = self.shape
        if self.rank <= min(d_out, d_in):
            return self
        value = self._computable()
        if d_in <= d_out:
            Q, R = torch.linalg.qr(value.A.mT)
            return LowRank(value.B @ R.mT, Q.mT, self.scale)
        Q, R = torch.linalg.qr(value.B)
        return LowRank(Q, R @ value.A, self.scale)

    def svd(self, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The thin singular value decomposition, or its ``rank`` leading triplets.

        With B = Q1 R1 and A^T = Q2 R2, the matrix is Q1 (R1 R2^T) Q2^T, so the SVD of the small core gives
        all of it. Singular values carry the rounding error of the factors' dtype (at least float32)
        relative to the largest one.

        Args:
            rank: how many triplets to compute vectors for; None for all min(R, d_out, d_in).

        Returns:
            U [d_out, k] with orthonormal columns, S [k] descending and >= 0, Vh [k, d_in] with orthonormal
            rows, where k = min(R, d_out, d_in, rank); S includes ``scale``.

        Raises:
            ValueError: if the factors are not finite, or ``rank`` is negative.
        """
        if rank is not None and rank < 0:
            raise ValueError(f"rank must be >= 0, not {rank}")
        value = self._computable()._finite()
        if value.rank == 0:
            return value.B, value.B.new_zeros(0), value.A
        left, right = _ThinQR.of(value.B), _ThinQR.of(value.A.mT)
        u, s, vh = _small_svd(left.triangle @ right.triangle.mT)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        U = left.times(u if value.scale >= 0 else -u)
        return U, s * abs(value.scale), right.times(vh.mT).mT

    def singular_values(self) -> Tensor:
        """Those of :meth:`svd`, [min(R, d_out, d_in)] descending, without its vectors.

        Raises:
            ValueError: if the factors are not finite.
        """
        value = self._computable()._finite()
        if value.rank == 0:
            return value.B.new_zeros(0)
        left, right = (torch.linalg.qr(factor, mode="r")[1] for factor in (value.B, value.A.mT))
        core = _finite_core(left @ right.mT)
        try:
            return torch.linalg.svdvals(core) * abs(value.scale)
        except _LinAlgError:
            return _small_svd(core)[1] * abs(value.scale)

    def truncate(self, rank: int) -> LowRank:
        """The closest matrix of rank ``rank`` in Frobenius norm: ||rest||^2 = sum of the dropped sigma^2.

        Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.

        Returns:
            A value of rank min(rank, R, d_out, d_in) and scale 1: A has orthonormal rows, B = U S holds all
            singular values.

        Raises:
            ValueError: if the factors are not finite, or ``rank`` is negative.
        """
        U, S, Vh = self.svd(rank)
        return LowRank(U * S, Vh)

    def randomised(self, rank: int, oversample: int, generator: torch.Generator) -> LowRank:
        """A nearly best matrix of rank ``rank`` by a randomised range finder, for sums of very many clients.

        Randomised subspace iteration (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM
        Review 2011, algorithms 4.4 and 5.1, two iterations). Never better than :meth:`truncate`, which it
        calls where R is so small that sampling saves nothing.

        Args:
            rank: the rank to cut to.
            oversample: extra random directions; more brings the result closer to :meth:`truncate`.
            generator: a CPU generator; the result depends on its state.

        Returns:
            As :meth:`truncate`.

        Raises:
            ValueError: if the factors are not finite, or ``rank`` or ``oversample`` is negative.
        """
        if rank < 0 or oversample < 0:
            raise ValueError(f"rank and oversample must be >= 0, not {rank} and {oversample}")
        width = rank + oversample
        value = self._computable()._finite()
        if width >= min(value.rank, *value.shape):
            return value.truncate(rank)
        B, A = value.B, value.A
        # Drawn in float64 on the CPU, so that every dtype and device tries the same directions.
        start = torch.randn(A.shape[1], width, generator=generator, dtype=torch.float64)
        Q = torch.linalg.qr(B @ (A @ start.to(A)))[0]
        for _ in range(_SUBSPACE_ITERATIONS):
            Q = torch.linalg.qr(A.mT @ (B.mT @ Q))[0]
            Q = torch.linalg.qr(B @ (A @ Q))[0]
        return LowRank(Q, (Q.mT @ B) @ A, value.scale).truncate(rank)

    def norm(self) -> float:
        """Frobenius norm, through the triangles of two QRs.

        Where the terms of a sum cancel, the error stays at eps * (norm of the terms); Gram products would
        leave sqrt(eps) * (norm of the terms).
        """
        value = self._computable()
        left = torch.linalg.qr(value.B, mode="r")[1]
        right = torch.linalg.qr(value.A.mT, mode="r")[1]
        return abs(value.scale) * float(torch.linalg.vector_norm(left @ right.mT, dtype=torch.float64))

    def inner(self, other: LowRank) -> float:
        """Frobenius inner product tr((B1^T B2) (A2 A1^T)), through two [R1, R2] Gram products.

        Raises:
            ValueError: if the shapes differ.
        """
        if self.shape != other.shape:
            raise ValueError(f"no inner product of matrices of shapes {self.shape} and {other.shape}")
        one, two = self._computable(), other._computable()
        dtype = torch.promote_types(one.B.dtype, two.B.dtype)
        one, two = one.to(dtype=dtype), two.to(dtype=dtype)
        columns, rows = one.B.mT @ two.B, one.A @ two.A.mT
        return one.scale * two.scale * float((columns.double() * rows.double()).sum())

    def _computable(self) -> LowRank:
        """This value with factors of at least float32, because bfloat16 sums lose small updates."""
        return self.to(dtype=torch.promote_types(self.B.dtype, torch.float32))

    def _finite(self) -> LowRank:
        for name, factor in (("B", self.B), ("A", self.A)):
            if not bool(torch.isfinite(factor).all()):
                raise ValueError(f"factor {name} holds values that are not finite")
        return self


@dataclass(frozen=True, eq=False)
class _ThinQR:
    """A thin QR [m, n] = Q [m, k] triangle [k, n], k = min(m, n), with Q kept as Householder reflectors.

    Applying the reflectors to a few columns costs far less than writing out Q, and a truncation needs few.
    """

    reflectors: Tensor
    tau: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> _ThinQR:
        return cls(*torch.geqrf(matrix))

    @property
    def triangle(self) -> Tensor:
        return self.reflectors[: self.tau.shape[0]].triu()

    def times(self, columns: Tensor) -> Tensor:
        """Q @ columns, [k, c] -> [m, c]."""
        padded = columns.new_zeros(self.reflectors.shape[0], columns.shape[1])
        padded[: columns.shape[0]] = columns
        return torch.ormqr(self.reflectors, self.tau, padded)


def _small_svd(core: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a core, in spite of the rare matrices on which LAPACK's driver gesdd fails.

    On CUDA PyTorch falls back to another driver by itself; on a CPU it offers this one only, so the retries
    give it other numbers to work on: the transpose in float64, then a perturbation far below the factors'
    own rounding errors.

    Raises:
        ValueError: if the core is not finite, as a product of finite factors may be.
    """
    core = _finite_core(core)
    try:
        return torch.linalg.svd(core, full_matrices=False)
    except _LinAlgError:
        wide = core.double().mT
    try:
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    except _LinAlgError:
        jitter = 1e-12 * float(wide.abs().max())
        u, s, vh = torch.linalg.svd(wide + jitter * torch.eye(*wide.shape).to(wide), full_matrices=False)
    return vh.mT.to(core.dtype), s.to(core.dtype), u.mT.to(core.dtype)


def _finite_core(core: Tensor) -> Tensor:
    if not bool(torch.isfinite(core).all()):
        raise ValueError("the product of the factors is not finite")
    return core
