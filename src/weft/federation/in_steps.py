"""What parts do to steps of training: other tensors that they show to them, and what they add to their losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.adaptation.placed import Placed
from weft.federation.batch import Batch

if TYPE_CHECKING:
    from weft.federation.pack import Pack


def losses(
    pack: Pack, placed: Iterable[Placed], objective: Callable[[Pack, Batch], Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """A step's own loss [k], and what it goes down: with what parts add to it. Both are of the tensors that parts show to steps.

    Args:
        placed: all parts of the pack at their sites.
    """
    guiding = [p for p in placed if p.part.in_steps]
    if not guiding:
        loss = objective(pack, batch)
        return loss, loss
    keys = torch.zeros(len(pack.clients), dtype=torch.int64, device=pack.device)
    if batch.keys is not None:
        keys = batch.keys[:, 0] if batch.clients is None else keys.index_copy(0, batch.clients, batch.keys[:, 0])
    shown = dict[str, Tensor]()
    sums, counts = torch.zeros_like(keys, dtype=pack.dtype), torch.zeros_like(keys)
    for p in guiding:
        w = {role: pack.tensors[name] for role, name in p.names.items()} | dict(p.fixed)
        if batch.keys is not None:
            shown |= {p.names[role]: value for role, value in p.part.drawn(w, keys).items()}
        if (penalty := p.part.penalty(w)) is not None:
            has = torch.ones_like(counts) if p.has is None else p.has.to(counts)
            sums, counts = sums + penalty * has, counts + has
    with pack.values(shown):
        loss = objective(pack, batch)
    return loss, loss + batch.of(sums / counts.clamp(min=1))
