"""Clipped sums of gradients of rows by whole weights, of which no row has one of its own.

A row's gradient is as large as all that is trained. Where those of a step do not fit together, rows of one client share a pass
all the same: each is a client of its own there, as in :meth:`weft.federation.pack.Pack.gradients_of_rows`, and only the
backbone's own parameters (the mode "parameters") are the same for all; :mod:`weft.tensors.ghost` notes how each row uses them.
What other parts train has a gradient for each row as ever, and counts in the same norm.

What this proves: a row adds f_i G_i to a sum, and f_i = min(1, C/||G_i||) is made of the very factors that G_i is made of, so
that it adds no more than C whatever these are, to rounding. That they come of this row alone is what every pass goes by in which
rows are clients (the law of packs); of slopes it is checked once more, in the first pass of a turn that goes a way through the
model, see :meth:`weft.tensors.ghost_book.Book.differentiate`. That G_i is all of the row's gradient follows from what a stand-in
lets one do: a loss that looks at weights itself (a proximal term), a function that is not known, a pass without a gradient, a
block that is computed once more end in ``Unknown``, never in a gradient that lacks something. What it does not prove: that the
known functions are differentiated rightly, which tests hold to rows one by one; nor that a function would be noticed that takes
weights past PyTorch's dispatch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.federation import in_steps
from weft.federation.batch import Batch, make_batch
from weft.tensors.ghost import stand_in
from weft.tensors.ghost_book import Book, Unknown, Way

if TYPE_CHECKING:
    from weft.federation.pack import Pack


class GhostRows:
    """For the steps of one turn.

    Attributes:
        shares: rows share passes, until something is met for which this is not known to be right, or two rows have no room.
        numbers: the most that a row has held beside what a pass keeps anyway; 0 = no pass has been made.
        seen: ways through a model in which rows were told apart, see :meth:`weft.tensors.ghost_book.Book.differentiate`.
    """

    def __init__(self) -> None:
        self.shares, self.numbers = True, 0
        self.seen: set[Way] = set()

    def sums(
        self,
        pack: Pack,
        objective: Callable[[Pack, Batch], Tensor],
        each: Tensor,
        index: np.ndarray,
        keys: Tensor | None,
        names: Sequence[str],
        clips: Sequence[float],
        most: int,
    ) -> tuple[dict[str, Tensor], list[int]] | None:
        """[K, …] sums of the clipped gradients of each client's rows, by name, and how many were within C; None = rows have to be
        taken one by one.

        Args:
            each: [n] the client in the pack of each row. index: [n, 1] the rows. keys: [n, 1], see
                :class:`weft.federation.batch.Batch`. names: of the tensors that move. clips: [K] C of each client. most: numbers
                that are held at once; the first pass is one of a single row, which tells how many that is.
        """
        if not self.shares or whole(pack).isdisjoint(names):
            return None
        apart = copy.copy(pack)
        apart.counting = None if pack.counting is None else pack.counting.apart()
        found = {n: torch.zeros_like(pack.tensors[n]).detach() for n in names}
        within = [0] * len(clips)
        try:
            for k in each.unique().tolist():
                left = (each == k).nonzero().squeeze(1)
                while len(left):
                    if (size := most // self.numbers if self.numbers else 2) < 2:
                        raise Unknown
                    part, left = left.tensor_split([size if self.numbers else 1])
                    rows = make_batch(pack.task, pack.bench.table, index[part.cpu().numpy()], None, pack.device)
                    rows = replace(rows, keys=None if keys is None else keys[part])
                    sums, short = self._of_client(apart, objective, k, rows, names, clips[k])
                    within[k] += short
                    for name, value in sums.items():
                        found[name][k] += value
        except Unknown:
            self.shares = False
            return None
        if pack.counting is not None and apart.counting is not None:
            pack.counting.take(apart.counting)
        return found, within

    def _of_client(
        self, pack: Pack, objective: Callable[[Pack, Batch], Tensor], k: int, rows: Batch, names: Sequence[str], clip: float
    ) -> tuple[Mapping[str, Tensor], int]:
        """Of rows [n, 1] in one pass, and how many were within C.

        Raises:
            Unknown: weights are used in a way for which this is not known to be right.
        """
        n, own = len(rows.index), whole(pack)
        book = Book(n, pack.device, pack.dtype)
        values = {name: pack.tensors[name][k : k + 1].detach() for name in own}
        standing = {name: stand_in(book, name, value) if name in names else value for name, value in values.items()}
        view = pack.of_rows(torch.full((n,), k, device=pack.device), standing)
        leaves = {name: view.tensors[name].requires_grad_(True) for name in names if name not in own}
        losses = in_steps.losses(view, view.weave.placed, objective, rows)[1]
        if view.counting is not None:
            view.counting.differentiated(names)
        grads = book.differentiate(losses, leaves, self.seen)
        square = book.squares()
        for grad in grads.values():
            square += grad.double().square().reshape(n, -1).sum(1)
        if not bool(square.isfinite().all()):
            raise Unknown
        factor = (clip / square.sqrt().clamp(min=1e-30)).clamp(max=1.0)
        self.numbers = max(self.numbers, -(-(book.numbers + sum(v.numel() for v in leaves.values())) // n))
        sums = {name: torch.tensordot(factor.to(g), g, 1) for name, g in grads.items()} | book.sums(factor)
        return sums, int((factor >= 1).sum())


def whole(pack: Pack) -> set[str]:
    """Names of the backbone's own parameters that a pack has."""
    return {n for p in pack.weave.placed if p.part.mode == "parameters" for n in p.names.values()}
