"""Who takes part in a round, and who fails in it: drawn by round and client alone, so that nothing else changes the draw."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from weft.federation.client import ClientState
from weft.federation.server import ServerState
from weft.tensors.keyed import numpy_generator


def cohort(server: ServerState, clients: list[ClientState], participation: float, last: Collection[str]) -> list[ClientState]:
    """Who takes part, by the plan's ``who``.

    Args:
        participation: fraction of the clients in a sample. last: ids of the last cohort.
    """
    who, t = server.round.who, server.round.index
    draw = numpy_generator(server.seed, "cohort", t)
    if who == "all":
        return clients
    if who == "same":
        return [c for c in clients if c.id in set(last)]
    if isinstance(who, list):
        return [c for c in clients if c.id in set(who)]
    if isinstance(who, tuple):
        groups: dict[Any, list[ClientState]] = {}
        for c in clients:
            groups.setdefault(c.facts.get(who[0], c.id), []).append(c)
        return [group[int(draw.integers(len(group)))] for _, group in sorted(groups.items(), key=lambda g: str(g[0]))]
    count = max(round(participation * len(clients)), 1)
    return sample(clients, count, draw)


def sample(clients: list[ClientState], count: int, draw: np.random.Generator) -> list[ClientState]:
    """So many clients, all if there are no more."""
    if count >= len(clients):
        return clients
    return [clients[i] for i in sorted(draw.choice(len(clients), count, replace=False))]


def drops_out(seed: int, client: str, t: int, chance: float) -> bool:
    """Whether a client fails in the middle of its turn."""
    return bool(numpy_generator(seed, "dropout", t, client).random() < chance)
