"""Who takes part in a round, and who fails in it: drawn by round and client alone, so that nothing else changes the draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.round import Round
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import DPFTRL
from weft.tensors.keyed import numpy_generator

Order = Callable[[Sequence[str], Sequence[int]], list[str]]
"""Clients in the order in which they are taken, given them and a lot for each."""


def eligible(plan: Round, clients: list[ClientState], last: Collection[str]) -> list[ClientState]:
    """Those of whom a plan would have some or all.

    Args:
        last: ids of the last cohort.
    """
    named = set(last) if plan.who == "same" else set(plan.who) if isinstance(plan.who, list) else None
    return clients if named is None else [c for c in clients if c.id in named]


def cohort(
    seed: int,
    plan: Round,
    clients: list[ClientState],
    participation: float,
    last: Collection[str],
    there: Callable[[str], bool] = lambda _: True,
    order: Order | None = None,
) -> list[ClientState]:
    """Who takes part, by the plan's ``who``.

    Args:
        participation: fraction of the clients in a sample. last: ids of the last cohort. there: who can be reached.
        order: in which some are taken; None = by lot.
    """
    draw = numpy_generator(seed, "cohort", plan.index)
    found = [c for c in eligible(plan, clients, last) if there(c.id)]

    def some(group: list[ClientState], count: int) -> list[ClientState]:
        if order is not None:
            named = set(order([c.id for c in group], draw.permutation(len(group)).tolist())[:count])
            return [c for c in group if c.id in named]
        if isinstance(plan.who, tuple):
            return [group[int(draw.integers(len(group)))]]
        return sample(group, count, draw)

    if isinstance(plan.who, tuple):
        groups: dict[Any, list[ClientState]] = {}
        for c in found:
            groups.setdefault(c.facts.get(plan.who[0], c.id), []).append(c)
        return [c for _, group in sorted(groups.items(), key=lambda g: str(g[0])) for c in some(group, 1)]
    count = max(round(participation * len(clients)), 1)
    return found if plan.who != "sample" or count >= len(found) else some(found, count)


def secretly(privacy: Privacy, plan: Round, clients: list[ClientState]) -> list[ClientState]:
    """Who takes part where the server hides clients.

    With ``dp-fedavg`` that is who draws so, each by a lot of its own that nobody else knows. With ``dp-ftrl``, where lots are no
    secret, each is in one round of a pass: it is drawn for that client alone, and stays whoever else comes or goes.

    Raises:
        UserError: the plan says itself who does.
    """
    if privacy.participation >= 1:
        return clients
    if plan.who != "sample":
        raise UserError(
            f"the method says itself who takes part in a round of the kind {plan.kind}, and the server's noise counts on lots: "
            "give --participation 1."
        )
    if isinstance(privacy.central, DPFTRL):
        number, now = divmod(plan.index, privacy.pass_rounds)
        turns = [numpy_generator(privacy.seed, "leaf", number, c.id).integers(privacy.pass_rounds) for c in clients]
        return [client for client, own in zip(clients, turns, strict=True) if own == now]
    drawn = privacy.secret("cohort", plan.index).bernoulli(privacy.participation, len(clients))
    return [client for client, taken in zip(clients, drawn, strict=True) if taken]


def sample(clients: list[ClientState], count: int, draw: np.random.Generator) -> list[ClientState]:
    """So many clients by lot, all if there are no more."""
    if count >= len(clients):
        return clients
    return [clients[i] for i in sorted(draw.choice(len(clients), count, replace=False))]


def drops_out(seed: int, client: str, t: int, chance: float) -> bool:
    """Whether a client fails in the middle of its turn."""
    return bool(numpy_generator(seed, "dropout", t, client).random() < chance)
