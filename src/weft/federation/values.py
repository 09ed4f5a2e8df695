"""Names and start values of the tensors that an adaptation trains, and whether values are numbers at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weft.federation.client import ClientState
from weft.federation.message import Value
from weft.federation.method import Adaptation
from weft.federation.scope import Scope
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.bench import Bench
    from weft.federation.server import Round


def initial(
    bench: Bench,
    client: ClientState,
    adaptation: Adaptation,
    received: Mapping[str, Value],
    round: Round,
    start: Mapping[str, Tensor],
) -> dict[str, Value]:
    """Every tensor that a client enters its turn with, by scope.

    Args:
        received: current values of its DOWN tensors, and start values of others that were handed to this client.
        start: start values handed out in set-up, instead of drawn ones.
    """
    values: dict[str, Value] = {}
    for name, init, scope in named(adaptation, bench.backbone):
        if Scope.DOWN in scope:
            if name in received:
                values[name] = received[name]
        elif Scope.KEEP in scope and name in client.kept:
            values[name] = client.kept[name]
        elif name in received:
            values[name] = received[name]
        elif name in start:
            values[name] = start[name]
        elif Scope.UP in scope and Scope.KEEP not in scope:  # starts afresh in each round, for each client on its own
            values[name] = bench.draw(init, name, round.index, client.id)
        else:
            values[name] = bench.draw(init, name)
    return values


def named(adaptation: Adaptation, backbone: Backbone) -> Iterator[tuple[str, Any, Scope]]:
    """(tensor name, start value, scope) of everything in an adaptation."""
    for part_name, (part, scope) in adaptation.items():
        for site in part.sites(backbone):
            for role, init in part.tensors(backbone, site).items():
                yield f"{part_name}/{site.name}/{role}", init, scope[role] if isinstance(scope, Mapping) else scope


def finite(values: Iterable[Any]) -> bool:
    """Whether all numbers in tensors and low-rank values are finite; anything else is passed over."""
    tensors: list[Tensor] = []
    for value in values:
        tensors += [value.A, value.B] if isinstance(value, LowRank) else [value] if isinstance(value, Tensor) else []
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())
