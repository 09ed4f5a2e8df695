"""How a rule over any method guides the steps of a turn, whatever loop the method has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.adaptation.optim import Moments

if TYPE_CHECKING:
    from weft.federation.batch import Batch

Slopes = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""The gradients of a step's objective where these tensors [K, …] have other values; by the same names."""


class Noted:
    """The gradients of the steps of a turn that moves nothing.

    Args:
        clients: how many there are.
    """

    def __init__(self, clients: int):
        self.clients = clients
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def take(self, loss: Tensor, batch: Batch, params: Mapping[str, Tensor]) -> None:
        """Note the gradients of one step, a mean over the rows of each client of the batch."""
        rows = batch.sizes.to(loss)
        slopes = torch.autograd.grad((loss * rows).sum(), list(params.values()), allow_unused=True)
        who = torch.arange(self.clients, device=loss.device) if batch.clients is None else batch.clients
        for (name, param), slope in zip(params.items(), slopes, strict=True):
            if slope is not None:
                self._sums[name] = self._sums.get(name, 0) + slope
                counts = self._rows.setdefault(name, torch.zeros(self.clients, device=loss.device, dtype=param.dtype))
                counts.index_add_(0, who, rows.to(counts))

    def means(self) -> dict[str, Tensor]:
        """[K, …] the mean over the rows of all steps that the tensor took part in; 0 for clients without any."""
        return {n: v / self._rows[n].clamp(min=1).view(-1, *[1] * (v.dim() - 1)) for n, v in self._sums.items()}


@dataclass
class Guidance:
    """What is added to the steps of a turn; tensors are [K, …], by name.

    Attributes:
        corrections, fixed: of every optimizer, see :class:`weft.adaptation.optim.Optimizer`. prox: added to its own.
        centre: gradients for the place of each batch's own where the turn began, and who has one [K]: a step of theirs is taken
            along g(w) - g(w₀) + centre, as in SVRG (Johnson & Zhang, NeurIPS 2013).
        begun: w₀, of the tensors that optimizers hold.
        noted: takes note of gradients, and nothing is moved.
    """

    corrections: Mapping[str, Tensor] = field(default_factory=dict)
    fixed: Mapping[str, Moments] = field(default_factory=dict)
    prox: float = 0.0
    centre: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    begun: dict[str, Tensor] = field(default_factory=dict)
    noted: Noted | None = None

    def shifts(self, slopes: Slopes) -> dict[str, Tensor]:
        """What :attr:`centre` adds to the gradients of a step."""
        if not self.centre:
            return {}
        found, shifts = slopes(self.begun), {}
        for name, (centre, has) in self.centre.items():
            gap = centre - found[name] if name in found else centre
            shifts[name] = gap * has.view(-1, *[1] * (gap.dim() - 1))
        return shifts
