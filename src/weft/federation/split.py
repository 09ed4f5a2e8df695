"""The contract of split learning: a network whose two ends clients hold, and whose blocks the server holds and nobody else.

Such a method has no turns that a client could take by itself. Clients and server take each step together, by three questions of
:mod:`weft.engines.stepwise`; a method says which parts are whose, in which order clients are served, and what becomes of the ends
when a round is closed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from weft.adaptation.optim import Moments, Optimizer
from weft.errors import UserError, WeftError
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.tasks.kinds import MASKED
from weft.typed import NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.pack import Pack
    from weft.federation.server import ServerState
    from weft.federation.turn import Turn
    from weft.tasks.task import Task

Order = Literal["parallel", "sequential"]
MOMENTS = "moments"
"""First word of the names under which optimizers are remembered, at a client and at the server."""


class SplitMethod(Method):
    """A method over a network that is cut in three.

    Attributes:
        order: the server moves its blocks once a step, by the sum of the gradients of all clients that take it (``parallel``), or
            it serves one client after the other, each to its end (``sequential``).
        noise: standard deviation of the Gaussian noise that a client adds to what it sends of its texts, 0 = none.
    """

    order: Order = "parallel"
    noise: NonNegative = 0.0

    @property
    def copies(self) -> bool:
        """Whether the server has blocks for each client, and averages them when a round is closed."""
        return False

    @abstractmethod
    def ends(self, backbone: Backbone, task: Task) -> Adaptation:
        """The parts of a client."""

    @abstractmethod
    def body(self, backbone: Backbone, task: Task) -> Adaptation:
        """The parts of the server, which no client is sent."""

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if task.kind != MASKED:
            raise UserError(
                f"{self.info.slug} learns to find hidden words of texts, and this task is {task.kind}: use --task masked, with "
                "texts such as --data docstrings."
            )
        ends = self.ends(backbone, task)
        return ends if client.id else {**ends, **self.body(backbone, task)}

    def turn_to_test(self, server: ServerState, turn: Turn) -> Turn:
        """A client's ends put together with the server's blocks.

        Nobody in a real federation could do so. It spares the simulation a pass in pieces, and gives the same numbers; what it
        would take to ask the server instead is not billed.
        """
        bench = server.bench.of(turn.client)
        body = self.body(bench.backbone, bench.task)
        blocks = {n: v for n, v in server.shared.items() if n.split("/")[0] in body}
        return replace(turn, adaptation={**turn.adaptation, **body}, held={**turn.held, **blocks})

    def start(self, server: ServerState) -> None:
        if server.bench.others:
            raise UserError(f"{self.info.slug} cuts one network in three, which all clients share: give a single --model.")

    def train(self, pack: Pack) -> Iterable[Update]:
        raise WeftError(f"{self.info.slug} has no turns of a client alone: it is played step by step (weft.engines.stepwise)")

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        """The mean of the ends; blocks as the steps have left them, or the plain mean of those of all whose updates count."""
        came: list[str] = []

        def counted() -> Iterator[Update]:
            for update in updates:
                came.append(update.client.id)
                yield update

        server.mean(counted())
        trained = server.trained
        if not self.copies:
            for name, value in trained.get("", {}).items():
                _keep(server, name, value)
            return
        some = [trained[client] for client in came if trained.get(client)]
        for name in (n for n in (some[0] if some else {}) if not n.startswith(f"{MOMENTS}/")):
            mean = sum((own[name].double() for own in some[1:]), some[0][name].double()) / len(some)
            server.write(name, mean.to(some[0][name].dtype))
        for client in came:
            moments = {n: v for n, v in trained.get(client, {}).items() if n.startswith(f"{MOMENTS}/")}
            if moments:
                server.notes.put(client, moments)


def _keep(server: ServerState, name: str, value: Tensor) -> None:
    if name.startswith(f"{MOMENTS}/"):
        server.memo[name] = value
    else:
        server.write(name, value)


# optimizers that go on -----------------------------------------------------------------------------------------------------


def moments_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer of one client, or of the server, remembers, by names to store it under."""
    found: dict[str, Tensor] = {}
    for name, (steps, values) in optimizer.remembered().items():
        found[f"{MOMENTS}/{name}/steps"] = steps.detach().cpu().clone()
        found |= {f"{MOMENTS}/{name}/{i}": value[0].detach().cpu().clone() for i, value in enumerate(values)}
    return found


def go_on(optimizer: Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Remember what :func:`moments_of` gave, where there is something."""
    known: dict[str, Moments] = {}
    for name, value in optimizer.params.items():
        steps = stored.get(f"{MOMENTS}/{name}/steps")
        if steps is not None:
            values = [stored[f"{MOMENTS}/{name}/{i}"] for i in range(optimizer.settings.moments)]
            known[name] = Moments(steps, tuple(v.to(value).unsqueeze(0).clone() for v in values))
    optimizer.go_on(known)
