"""Which of many candidates have gone into a linear layer, out of how its weights changed.

The gradient of a layer W is a sum of outer products δ xᵀ with its inputs x, so that the rows of a change are combinations of
few of the candidates, the same for all rows. If there are no more inputs than the change has rank, each input lies in the span
of the rows, and other candidates do not (DAGER: I. Petrov, D. I. Dimitrov, M. Baader, M. N. Müller, M. Vechev, NeurIPS 2024,
arXiv 2405.15586). If there are more, as behind a factor of LoRA with r rows, none does. Yet the candidate that is nearest to the
span is likely one of them, and what it explains can be taken off the rows before the next is looked for: rank-aware order
recursive matching pursuit (M. E. Davies, Y. C. Eldar, "Rank Awareness in Joint Sparse Recovery", IEEE Transactions on Information
Theory 2012), whose first step is the test of the span.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPENT = 0.03
"""A candidate is not chosen if no more than this share of its length is left beside those that were: it tells nothing new."""


def row_space(change: Tensor, least: float) -> Tensor:
    """[R, d] an orthonormal basis of the rows of a change [m, d].

    Args:
        least: singular values up to this are rounding.
    """
    _, values, rows = torch.linalg.svd(change, full_matrices=False)
    return rows[values > least]


def without(x: Tensor, basis: Tensor) -> Tensor:
    """Vectors [M, d] but for what they have in a subspace [R, d]."""
    return x - (x @ basis.mT) @ basis


def apart(x: Tensor, basis: Tensor) -> Tensor:
    """[M] how far off a subspace [R, d] candidates [M, d] lie, over their length."""
    return without(x, basis).norm(dim=1) / x.norm(dim=1).clamp(min=1e-30)


def pursue(change: Tensor, x: Tensor, least: float, most: int) -> list[int]:
    """Candidates x [M, d] of which the rows of a change [m, d] are combinations, the first found first.

    It ends where what is left of the change is rounding.

    Args:
        least: singular values of the change up to this are rounding. most: candidates that are chosen at most; d of them would
            explain anything.
    """
    left = torch.linalg.qr(change, mode="r").R  # as many rows as there are columns at most, and the same span
    length = x.square().sum(1)
    rest, taken, found = length.clone(), x.new_zeros(0, x.shape[1]), list[int]()
    while len(found) < most and len(basis := row_space(left, least)):
        fresh = rest > SPENT**2 * length
        if not bool(fresh.any()):
            break
        # the basis is at right angles to all that were taken: it sees of a candidate what these leave of it
        seen = (x @ basis.mT).square().sum(1) / rest
        found.append(int(seen.where(fresh, -1.0).argmax()))
        new = without(without(x[found[-1]][None], taken), taken)[0]  # twice, for what rounding left of them
        new = new / new.norm()
        taken = torch.cat([taken, new[None]])
        rest = rest - (x @ new).square()
        left = left - (left @ new)[:, None] * new
    return found
