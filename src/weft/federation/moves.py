"""Moves of LoRA factors, summed over clients without a product: by what models changed that have a LoRA in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.adaptation.from_weights import FromWeights
from weft.adaptation.lora import LoRA
from weft.federation.layout import Adaptation
from weft.federation.scope import Scope
from weft.tensors.forms import Value
from weft.tensors.growing import SLACK
from weft.tensors.lowrank import LowRank


def common(adaptation: Adaptation) -> set[str]:
    """Names of the parts that are a LoRA of which nothing stays at a client and something goes up."""
    found = set()
    for name, (part, scope) in adaptation.items():
        scopes = list(scope.values()) if isinstance(scope, Mapping) else [scope]
        known = all(Scope.KEEP not in s and (Scope.DOWN in s or Scope.UP in s) for s in scopes)
        # what acts otherwise than by its product is none, as a mixture of two; moves know of no start that stays beside
        by_product = isinstance(part, LoRA) and type(part).apply in (LoRA.apply, FromWeights.apply)
        if by_product and known and any(Scope.UP in s for s in scopes):
            found.add(name)
    return found


@dataclass
class Moves:
    """Σ w ΔW over moves of LoRA factors at one site, in factors.

    Attributes:
        shape: (d_out, d_in). weight: Σ w, where it is to be a mean. squares: Σ w ‖ΔW‖_F².
        terms: of moves of both factors. beside: where one factor stays, by which that is (its role and identity): itself, and the
            sum of the other's moves, so that all of them together have its rank.
    """

    shape: tuple[int, int]
    weight: float = 0.0
    squares: float = 0.0
    terms: list[LowRank] = field(default_factory=list)
    beside: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def move(self, old: LowRank, A: Value | None, B: Value | None, weight: float) -> None:
        """Add w s (B A - B⁰ A⁰) = w s ((B - B⁰) A + B⁰ (A - A⁰)), in which no large terms cancel.

        Args:
            old: B⁰, A⁰ and s. A, B: the new factors, None = it did not move.
        """
        scale, mine = old.scale, list[LowRank]()
        if isinstance(A, Tensor) and isinstance(B, Tensor) and len(A) != old.rank:  # ranks were added, or pruned
            mine = [LowRank(B=B.clone(), A=A.clone(), scale=scale), old * -1.0]
            self.terms += [term * weight for term in mine]
            A = B = None
        if isinstance(B, Tensor):
            moved = B - old.B
            if isinstance(A, Tensor):
                mine.append(LowRank(B=moved, A=A.clone(), scale=scale))
                self.terms.append(mine[-1] * weight)
            else:
                mine.append(LowRank(B=moved, A=old.A, scale=scale))
                self._stays("A", old.A, moved * (weight * scale))
        if isinstance(A, Tensor) and bool(old.B.any()):
            moved = A - old.A
            mine.append(LowRank(B=old.B, A=moved, scale=scale))
            self._stays("B", old.B, moved * (weight * scale))
        self.squares += weight * square(LowRank.cat(mine, self.shape))
        if sum(term.rank for term in self.terms) > SLACK * min(self.shape):
            self.terms = [LowRank.cat(self.terms).compress()]

    def _stays(self, role: str, factor: Tensor, moved: Tensor) -> None:
        known = self.beside.get((role, id(factor)))
        self.beside[role, id(factor)] = factor, moved if known is None else known[1] + moved

    def mean(self) -> LowRank:
        """Over the weights, or the sum where there are none."""
        beside = [
            LowRank(B=moved, A=factor) if role == "A" else LowRank(B=factor, A=moved)
            for (role, _), (factor, moved) in self.beside.items()
        ]
        return LowRank.cat([*self.terms, *beside], self.shape) * (1.0 / (self.weight or 1.0))


def square(value: LowRank) -> float:
    """‖value‖_F² by Gram products, which is enough where its terms do not cancel; of more terms than it has rows or columns, by
    the matrix itself, which is smaller then.
    """
    if value.rank > min(value.shape):
        return float(torch.linalg.vector_norm(value.dense(), dtype=torch.float64)) ** 2
    return value.inner(value)


def fits(old: LowRank, A: Value | None, B: Value | None) -> bool:
    """Whether factors have a product, the old ones in the place of one that did not move.

    A stranger's may have none, where a method does not know beforehand of how many ranks they are.
    """
    ranks = [value.shape[axis] for value, axis in ((A, 0), (B, 1)) if isinstance(value, Tensor)]
    return len({*ranks, old.rank} if len(ranks) < 2 else {*ranks}) == 1


def product(values: Mapping[str, Value], part: str, site: str, scale: float) -> LowRank:
    a, b = (values[f"{part}/{site}/{role}"] for role in "AB")
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return LowRank(B=b, A=a, scale=scale)
