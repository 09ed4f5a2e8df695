"""A method on a server's state: its beginning, what a client enters a round with, and the end of a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.common_facts import nobody
from weft.federation.layout import Adaptation, named
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.robust_mean import Robust
from weft.federation.round import Round
from weft.federation.scope import Scope
from weft.federation.server import ServerState
from weft.federation.server_step import ServerStep
from weft.federation.turn import Turn
from weft.storage.notes import Notes
from weft.tensors.forms import finite


def adapted(method: Method, bench: Bench, client: ClientInfo) -> Adaptation:
    """The parts of a client on its own backbone."""
    own = bench.of(client)
    return method.adapt(own.backbone, own.task, client)


def begin(
    method: Method,
    bench: Bench,
    clients: list[ClientInfo],
    rounds: int,
    start: dict[str, Tensor] | None = None,
    robust: Robust | None = None,
    step: ServerStep | None = None,
    notes: Notes | None = None,
    public: Bench | None = None,
    periods: int = 1,
) -> ServerState:
    """The state of a server before :meth:`Method.start`.

    Args:
        rounds: planned. start: start values handed out in set-up. robust, step: of its means. notes: where it has them.
        public: rows for its own training. periods: in which clients' rows arrive.

    Raises:
        UserError: clients with another backbone could not read each other's messages.
    """
    unknown = nobody(clients)
    _check_others(method, bench, unknown)
    adaptation = adapted(method, bench, unknown)
    return ServerState(bench, adaptation, clients, rounds, start, robust, method, step, notes, public, periods)


def enter(
    method: Method,
    bench: Bench,
    turns: Sequence[Turn],
    round: Round,
    start: Mapping[str, Tensor] | None = None,
    hides: bool = False,
) -> Pack:
    """Clients that have received what they train or are scored with, and whose models are made of it.

    Args:
        hides: they are to train by :func:`weft.federation.hidden_turn.trained`.
    """
    if bench.arrivals is not None:
        for turn in turns:
            bench.arrivals.enter(turn.client, round.period)
    return Pack(bench, turns, round, start, load=method.load, hides=hides)


def close_round(method: Method, server: ServerState, updates: Iterable[Update]) -> dict[str, Any]:
    """The method's own rule on a round's updates, at a new stamp.

    A round whose result is not finite is undone: finite updates of absurd size would end the run for everybody.

    Returns:
        what a robust rule did, nothing for a plain mean.

    Raises:
        UserError: a robust rule, a server's step or asynchronous aggregation was asked for, and the method does not come by
            :meth:`ServerState.mean`.
    """
    server.clock += 1
    server.remarks = {}
    came: list[str] = []
    late: list[str] = []

    def counted() -> Iterator[Update]:
        for update in updates:
            came.append(update.client.id)
            if update.late is not None:
                late.append(update.client.id)
            server.counted[update.client.id] = server.round.index
            yield update

    undo = server.snapshot()
    server.notes.finite = True
    method.aggregate(server, counted())
    if not (server.notes.finite and finite((*server.shared.values(), *server.memo.values()))):
        undo()
        return {"skipped": "the updates together gave values that are not finite, and count for nothing"}
    rule, step = server.robust.rule, server.step.kind
    if came and not server.remarks and rule != "none":
        raise UserError(
            f'{method.info.slug} does not aggregate with the server\'s mean, so robust = "{rule}" cannot protect it: remove '
            "--robust."
        )
    if came and not server.remarks and step != "none":
        raise UserError(
            f'{method.info.slug} does not aggregate with the server\'s mean, so server_step = "{step}" can do nothing: remove '
            "--server-step."
        )
    if late and not server.remarks:
        raise UserError(
            f"{method.info.slug} does not aggregate with the server's mean, which alone knows what an update counts that began "
            "from an older model: leave --aggregation out."
        )
    return {} if rule == "none" else server.remarks


def _check_others(method: Method, bench: Bench, client: ClientInfo) -> None:
    """Clients with another backbone must be able to read and answer the same messages."""

    def travelling(of: Bench) -> dict[str, tuple[int, ...]]:
        mine = method.adapt(of.backbone, of.task, client)
        return {n: tuple(i.shape) for n, i, s in named(mine, of.backbone) if Scope.DOWN in s or Scope.UP in s}

    for name, other in bench.others.items():
        here, there = travelling(bench), travelling(other)
        odd = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        if odd:
            raise UserError(
                f"{method.info.slug} sends {len(odd)} tensors that are not the same for {bench.backbone.name} and "
                f"{name}, such as {odd[0]}: give all clients one backbone, or choose a method for several (fedhpl)."
            )
