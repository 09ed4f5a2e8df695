"""Entropic optimal transport of many small problems at once, of which one side may keep some of its mass.

J.-D. Benamou et al., "Iterative Bregman Projections for Regularized Transportation Problems", SIAM J. Sci. Comput. 37(2), 2015,
proposition 5; M. Cuturi, "Sinkhorn Distances", NIPS 2013, where nothing is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROOM = 1 << 20
"""Entries of costs that :func:`transported` works on at once."""


@dataclass(frozen=True)
class Transport:
    """min ⟨T, C⟩ + λ Σ T log T over T ≥ 0 [V, N] whose columns sum to μ/N and whose rows sum to at most 1/V.

    Scaling, of log u, log v: u ← min(1, 1/V / (K v)), v ← μ/N / (Kᵀ u), K = exp(−C/λ). The number of iterations is fixed: a rule
    that stops them by a mean over a batch would let its problems see each other.

    Attributes:
        mass: μ, from 0 (excluded) to 1. entropy: λ. iterations: each updates u, then v, so that columns are exact.
        balanced: rows sum to 1/V, for which μ is 1.
    """

    mass: float = 1.0
    entropy: float = 0.1
    iterations: int = 100
    balanced: bool = False

    @torch.no_grad()
    def potential(self, cost: Tensor) -> Tensor:
        """log v [..., N] before the last iteration, of costs [..., V, N]: :meth:`plan` makes T of it in one."""
        scores = self._scores(cost)
        v = torch.zeros_like(scores[:, 0])
        for _ in range(self.iterations - 1):
            v = self._next(scores, v)[1]
        return v.movedim(0, -1)

    @torch.no_grad()
    def plan(self, cost: Tensor, potential: Tensor | None = None) -> Tensor:
        """T [..., V, N] of costs, without a gradient; single precision at least, in which a cost of 2 at λ 0.01 is no zero.

        Args:
            potential: of these costs, if it is known.
        """
        scores = self._scores(cost)
        u, v = self._next(scores, (self.potential(cost) if potential is None else potential).movedim(-1, 0))
        return (scores + u.unsqueeze(0) + v.unsqueeze(1)).exp().movedim((0, 1), (-1, -2))

    def _scores(self, cost: Tensor) -> Tensor:
        """−C/λ [N, V, ...]: sums over the two small axes are sums of long vectors."""
        wide = cost.to(torch.promote_types(cost.dtype, torch.float32))
        return (wide / -self.entropy).movedim((-1, -2), (0, 1)).contiguous()

    def _next(self, scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """log u [V, ...] and log v [N, ...] of the next iteration."""
        prompts, places = scores.shape[:2]
        u = -math.log(places) - torch.logsumexp(scores + v.unsqueeze(1), 0)
        u = u if self.balanced else u.clamp(max=0)
        return u, math.log(self.mass / prompts) - torch.logsumexp(scores + u.unsqueeze(0), 1)


def transported(patches: Tensor, texts: Tensor, transport: Transport, room: int = ROOM) -> Tensor:
    """Σ T∘S [k, b, C] over V places and N prompts: S their cosines, T the plan of the costs 1 − S of a picture and a class.

    T is taken as a constant, which by the envelope theorem is right for the optimum. Nothing of the size [k, b, C, V, N] is made
    or kept for the backward pass: classes are worked through in turns, there as well.

    Args:
        patches: [k, b, V, e] and texts: [k, C, N, e], of unit length; no gradient goes to patches.
        room: entries of S at once, but at least those of one class.
    """
    found: Tensor = _Transported.apply(patches, texts, transport, room)
    return found


class _Transported(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, texts: Tensor, transport: Transport, room: int) -> Tensor:
        k, b, places, _ = patches.shape
        ctx.size, ctx.transport = max(room // (k * b * places * texts.shape[2]), 1), transport
        sums, potentials = [], []
        for some in texts.split(ctx.size, 1):
            s = _cosines(patches, some)
            potentials.append(transport.potential(1 - s))
            sums.append((transport.plan(1 - s, potentials[-1]) * s).sum((-2, -1)).to(s))
        ctx.save_for_backward(patches, texts, torch.cat(potentials, 2))
        return torch.cat(sums, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """∂/∂h [k, C, N, e] = Σ_b slope Σ_v T g_v."""
        patches, texts, potentials = ctx.saved_tensors
        found = []
        for some, known, slope in zip(
            *(x.split(ctx.size, d) for x, d in ((texts, 1), (potentials, 2), (slopes, 2))), strict=True
        ):
            plan = ctx.transport.plan(1 - _cosines(patches, some), known)
            weights = (plan * slope[..., None, None]).to(patches)
            found.append(torch.einsum("kbcvn,kbve->kcne", weights, patches))
        return None, torch.cat(found, 1), None, None


def _cosines(patches: Tensor, texts: Tensor) -> Tensor:
    """[k, b, C, V, N]."""
    return torch.einsum("kbve,kcne->kbcvn", patches, texts)
