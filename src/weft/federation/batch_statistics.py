"""Statistics of batch norms that move: the one place where tensors of a pack get values that no optimizer has given them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from weft.adaptation.in_flight import Noted
from weft.adaptation.norm_statistics import Moments, Statistics, pooled
from weft.adaptation.placed import Placed

if TYPE_CHECKING:
    from weft.federation.batch import Batch
    from weft.federation.pack import Pack
    from weft.tasks.outputs import Output


def settle(pack: Pack, noted: Iterable[Noted]) -> None:
    """After a step: what the norms hold, moved by each of its passes of training."""
    for placed, clients, found in noted:
        part, who = cast(Statistics, placed.part), _everybody(pack) if clients is None else clients
        old = {role: pack.tensors[name].index_select(0, who) for role, name in placed.names.items()}
        for role, value in part.moved(pack.backbone.module(placed.site.name), old, found).items():
            _assign(pack, placed, role, who, value)


@torch.no_grad()
def measure(pack: Pack, forward: Callable[[Pack, Batch], Output], size: int) -> None:
    """Static statistics of each client's training rows, as one pass over them finds them batch by batch; nothing else moves.

    Args:
        size: rows of a batch, by which a norm normalises here as in training.
    """
    sums: dict[str, tuple[Placed, Moments]] = {}
    for batch in pack.batches(1.0, None, size, "statistics"):
        pack.worked(batch, moving=False)
        with pack.weave.noting(measuring=True) as noted:
            forward(pack, replace(batch, keys=None))
        for placed, clients, found in noted:
            who = _everybody(pack) if clients is None else clients
            sums[placed.site.name] = placed, _added(pack, sums.get(placed.site.name), who, found)
    for placed, all_rows in sums.values():
        assert all_rows.count is not None
        who = all_rows.count.nonzero().squeeze(1)
        for role, value in cast(Statistics, placed.part).of_rows(all_rows).items():
            _assign(pack, placed, role, who, value.index_select(0, who))


def _added(pack: Pack, before: tuple[Placed, Moments] | None, who: Tensor, found: Moments) -> Moments:
    """Moments of all clients of a pack with those of some rows, of the clients ``who``."""
    assert found.count is not None
    k, d = len(pack.clients), found.mean.shape[1]
    exact = torch.float32 if pack.device.type == "mps" else torch.float64

    def spread(value: Tensor) -> Tensor:
        return torch.zeros(k, *value.shape[1:], device=pack.device, dtype=exact).index_copy(0, who, value.to(pack.device, exact))

    none = torch.zeros(k, d, device=pack.device, dtype=exact)
    old = Moments(none, none, none[:, 0]) if before is None else before[1]
    return pooled(old, Moments(spread(found.mean), spread(found.var), spread(found.count)))


def _everybody(pack: Pack) -> Tensor:
    return torch.arange(len(pack.clients), device=pack.device)


def _assign(pack: Pack, placed: Placed, role: str, who: Tensor, value: Tensor) -> None:
    name = placed.names[role]
    pack.tensors[name] = pack.tensors[name].detach().index_copy(0, who, value.to(pack.tensors[name]))
