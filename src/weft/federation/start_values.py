"""Values that a client enters its turn with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weft.federation.bench import Bench
from weft.federation.layout import Adaptation, named
from weft.federation.round import Round
from weft.federation.scope import Scope
from weft.federation.turn import Turn
from weft.tensors.forms import Value
from weft.tensors.masked import Masked


def initial(bench: Bench, turn: Turn, round: Round, start: Mapping[str, Tensor]) -> dict[str, Value]:
    """Every tensor that a client enters its turn with, by scope; 0 where entries of one are not said.

    Args:
        start: start values handed out in set-up, instead of drawn ones.
    """
    client, received = turn.client, turn.held
    values: dict[str, Value] = {}
    for name, init, scope in named(turn.adaptation, bench.backbone):
        if Scope.DOWN in scope:
            if name in received:
                values[name] = received[name]
        elif Scope.KEEP in scope and name in client.kept:
            values[name] = client.kept[name]
        elif name in received:
            values[name] = received[name]
        elif init.called(name) not in start and Scope.UP in scope and Scope.KEEP not in scope:
            values[name] = bench.draw(init, name, round.index, client.id)  # afresh in each round, for each client on its own
        else:
            values[name] = bench.begin(init, name, start)
    return {n: v.dense() if isinstance(v, Masked) else v for n, v in values.items()}


def first(bench: Bench, adaptation: Adaptation, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The start value of every tensor of a client, which everybody can draw.

    Args:
        start: those handed out in set-up, instead of drawn ones.
    """
    return {n: bench.begin(init, n, start) for n, init, _ in named(adaptation, bench.backbone)}
