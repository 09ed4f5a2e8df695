"""What a server makes of a mean of its clients' models: the mean itself, or a step of an optimizer of its own towards it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from weft.errors import UserError
from weft.typed import Called, Positive, check

Kind = Literal["none", "avgm", "adam", "yogi", "adagrad"]
KINDS: tuple[str, ...] = get_args(Kind)
Beta = Annotated[float, Ge(0), Lt(1)]
RATES: Mapping[str, float] = {"avgm": 1.0}
"""Usual rates; of the other kinds it is ``SMALL``."""
SMALL = 1e-3
"""The rate of the adaptive kinds in OpenFedLLM (Ye et al., KDD 2024, arXiv 2402.06954), for LoRA; Reddi et al. tune it."""


@dataclass(frozen=True)
class ServerStep:
    """S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2.

    With x the value that the server holds and Δ = mean - x:

        avgm      m ← β₁ m + Δ                     x ← x + η m
        adagrad   m ← β₁ m + (1 - β₁) Δ            v ← v + Δ²
        adam                                       v ← β₂ v + (1 - β₂) Δ²
        yogi                                       v ← v - (1 - β₂) Δ² sign(v - Δ²)
                                                   x ← x + η m / (√v + τ),    v₀ = τ²

    Each tensor has an m and a v of its own; entries that nobody has sent keep theirs. FedAvgM (T.-M. H. Hsu, H. Qi, M. Brown,
    arXiv 1909.06335) with η = 1 and β₁ = 0 is the plain mean, bit for bit.

    Attributes:
        kind: ``none``: the mean.
        lr: η; None = 1 for ``avgm``, 0.001 for the others.
        beta1: momentum; None = 0.9, and 0 for ``adagrad``, which has none in the paper. beta2: decay of v. tau: τ.
    """

    kind: Annotated[Kind, Called("server step")] = "none"
    lr: Positive | None = None
    beta1: Beta | None = None
    beta2: Beta = 0.99
    tau: Positive = 1e-3

    def __post_init__(self) -> None:
        check(self)

    @property
    def rate(self) -> float:
        return RATES.get(self.kind, SMALL) if self.lr is None else self.lr

    @property
    def momentum(self) -> float:
        return self.beta1 if self.beta1 is not None else 0.0 if self.kind == "adagrad" else 0.9

    def check(self, slug: str, sums: bool) -> None:
        """Refuse what can't work, before a run.

        Args:
            slug, sums: the method's.

        Raises:
            UserError: the method needs more than sums.
        """
        if self.kind != "none" and not sums:
            raise UserError(
                f'{slug} needs each update by itself and not their mean, so server_step = "{self.kind}" can do nothing: leave '
                "--server-step out, or choose a method such as fedit."
            )

    def taken(self, memo: dict[str, Any], name: str, held: Tensor, mean: Tensor, reached: Tensor | None = None) -> Tensor:
        """The new value of a tensor.

        Args:
            memo: where moments are kept. held: the value before. reached: [bool] the entries that somebody sent, None = all.
        """
        if self.kind == "none":
            return mean
        gap = mean - held.to(mean)
        first, second = f"{STATE}/m/{name}", f"{STATE}/v/{name}"
        old = memo.get(first)
        m = (torch.zeros_like(gap) if old is None else old) * self.momentum
        m = m + (gap if self.kind == "avgm" else (1 - self.momentum) * gap)
        memo[first] = m if reached is None else torch.where(reached, m, torch.zeros_like(m) if old is None else old)
        if self.kind == "avgm":
            new = mean - (gap - self.rate * m)  # in this form it is the mean itself where η m = Δ
        else:
            old = memo.get(second)
            start = torch.full_like(gap, self.tau**2) if old is None else old
            v = self._squares(start, gap.square())
            memo[second] = v if reached is None else torch.where(reached, v, start)
            new = held.to(mean) + self.rate * m / (v.sqrt() + self.tau)
        return new if reached is None else torch.where(reached, new, held.to(mean))

    def _squares(self, v: Tensor, square: Tensor) -> Tensor:
        if self.kind == "adagrad":
            return v + square
        if self.kind == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)


STATE = "server step"
"""The first word of the names of moments in ``ServerState.memo``."""
