"""Tables of class-wise logits of several clients, mixed for one receiver."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTINGS = ("accuracy", "accuracy_softmax", "uniform", "count")
RECEIVERS = ("none", "leave_self_out", "similarity")


def contributions(accuracy: Tensor, count: Tensor, weighting: str, kappa: float = 0.1) -> Tensor:
    """How much each client's row counts, not normalised, 0 without a correct example: [n, C] accuracies and counts -> [n, C]."""
    some = (accuracy > 0).to(accuracy.dtype)
    return (
        some
        * {
            "accuracy": accuracy,
            "accuracy_softmax": torch.exp((accuracy - 1) / kappa),
            "uniform": torch.ones_like(accuracy),
            "count": count.to(accuracy.dtype),
        }[weighting]
    )


def mix(tables: Tensor, weights: Tensor, own: Tensor | None, me: int | None, receiver: str) -> tuple[Tensor, Tensor]:
    """The table for one receiver.

    Args:
        tables: [n, C, C], row c the mean logits of client j for class c. weights: [n, C], not normalised.
        own: the receiver's table [C, C] and me: its place among the n; None if it has none.
        receiver: ``none``, ``leave_self_out``, or ``similarity``: a factor exp(cos) of the rows, 1 for rows that the receiver
            lacks.

    Returns:
        the mixed table [C, C], and which rows have a contributor [C].
    """
    if receiver == "leave_self_out" and me is not None:
        weights = weights.clone()
        weights[me] = 0
    if receiver == "similarity" and own is not None:
        alike = torch.cosine_similarity(tables, own.unsqueeze(0), dim=-1)
        lacking = own.abs().sum(-1) == 0
        weights = weights * torch.where(lacking, torch.ones_like(alike), alike.exp())
    total = weights.sum(0)
    share = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("nc,ncd->cd", share, tables), total > 0
