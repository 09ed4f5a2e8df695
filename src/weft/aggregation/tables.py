"""Tables of class-wise logits of several clients, mixed for one receiver."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Mixing = Literal["accuracy", "accuracy_softmax", "uniform", "count"]
Receiver = Literal["none", "leave_self_out", "similarity"]
WEIGHTINGS: tuple[Mixing, ...] = get_args(Mixing)
RECEIVERS: tuple[Receiver, ...] = get_args(Receiver)


def contributions(given: Tensor, weighting: Mixing, kappa: float = 0.1) -> Tensor:
    """How much each client's row counts, not normalised, 0 without a correct example: [n, C] -> [n, C].

    Args:
        given: numbers of correct examples for ``count``, else accuracies; below 0 is 0.
    """
    given = given.clamp(min=0)
    if weighting == "uniform":
        return (given > 0).to(given.dtype)
    return (given > 0) * torch.exp((given - 1) / kappa) if weighting == "accuracy_softmax" else given


def mix(tables: Tensor, weights: Tensor, me: int | None, receiver: Receiver) -> tuple[Tensor, Tensor]:
    """The table for one receiver.

    Args:
        tables: [n, C, C], row c the mean logits of client j for class c. weights: [n, C], not normalised.
        me: the receiver's place among the n; None if it has sent no table.
        receiver: ``none``, ``leave_self_out``, or ``similarity``: a factor exp(cos) of the rows, 1 for rows that the receiver
            lacks.

    Returns:
        the mixed table [C, C], and which rows have a contributor [C].
    """
    if receiver == "leave_self_out" and me is not None:
        weights = weights.clone()
        weights[me] = 0
    if receiver == "similarity" and me is not None:
        alike = torch.cosine_similarity(tables, tables[me : me + 1], dim=-1)
        lacking = tables[me].abs().sum(-1) == 0
        weights = weights * torch.where(lacking, torch.ones_like(alike), alike.exp())
    total = weights.sum(0)
    share = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("nc,ncd->cd", share, tables), total > 0
