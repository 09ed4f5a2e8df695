"""Statistics of batch norms over a method: a class made of both, whose clients have them beside what the method adapts."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from weft.adaptation.norm_statistics import Kind, Statistics
from weft.errors import UserError, WeftError
from weft.federation.batch_statistics import measure
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.scope import SHARED
from weft.federation.server import ServerState

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.method import Method
    from weft.federation.method import Method as Base
    from weft.tasks.task import Task
else:
    Base = object  # a mix-in: it stands before the class of a method, and brings no settings of the contract of its own

PART = "statistics"
"""Name of the part, and first word of its tensors."""


@dataclass(frozen=True)
class WithStatistics(Base):
    """What is put before a method's class.

    Attributes:
        norm_statistics: what becomes of them.
    """

    norm_statistics: Kind = "averaged"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        found = super().adapt(backbone, task, client)
        if PART in found:
            raise WeftError(f'a method may not call a part of its own "{PART}"')
        return {**found, PART: (Statistics(self.norm_statistics), SHARED)}

    # server: what a method sends and aggregates by rules of its own goes as it ever did ------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        return _with_news(super().send(server, client), server, client)

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return _with_news(super().send_to_test(server, client), server, client)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        """Statistics become their mean, by the method's weights or, of static ones, by rows. No step of the server's is taken
        along it, which may lead to a variance below 0.
        """
        from weft.rules.over import apart

        apart_from_it: list[Update] = []

        def take(update: Update, own: Any) -> None:
            mine = {f"{PART}/{n}": v for n, v in own.items()}
            apart_from_it.append(replace(update, tensors=mine))

        super().aggregate(server, apart(updates, PART, take))
        remarks, server.remarks = server.remarks, {}
        by_rows = (lambda update: update.weight) if self.norm_statistics == "static" else None
        for name, value in server.average(apart_from_it, PART, weight=by_rows, stepped=False).items():
            server.write(name, value)
        server.remarks = remarks

    # client -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        place: dict[str, int] = {}
        for update in super().train(pack):
            if not place:  # all have trained
                place = {c.id: k for k, c in enumerate(pack.clients)}
                self._measured(pack)
            k = place[update.client.id]
            own = {n: pack.value(k, n) for n in pack.params(PART)}
            yield replace(update, tensors={**update.tensors, **own})

    def personalise(self, pack: Pack) -> None:
        super().personalise(pack)
        if pack.optimized():
            self._measured(pack)

    def _measured(self, pack: Pack) -> None:
        if self.norm_statistics == "static" and pack.guidance.noted is None:
            measure(pack, self.forward, self.batch)


def _with_news(message: Message, server: ServerState, client: ClientInfo) -> Message:
    news = server.stale(client, PART).tensors if client.id else {}
    return replace(message, tensors={**message.tensors, **news})


def with_norms(method: Method, kind: Kind | Literal["frozen"]) -> Method:
    """The method with statistics of batch norms that move: ``with_norms(FedAvg(), "averaged")``. Its slug says so,
    ``fedavg+averaged-norms``.

    It goes under a rule, and over options of LoRA. Frozen statistics are what every method has.

    Raises:
        UserError: the method takes no steps that statistics could be of.
    """
    if kind == "frozen":
        return method
    if word := next((w for w in WHY if w in method.info.needs), None):
        raise UserError(
            f'{method.info.slug} {WHY[word]}, so that batch_norms = "{kind}" would not be what it says: leave it out, or choose '
            "a method such as fedavg."
        )
    cls: Any = type(method)
    made: Method = _made(cls, kind)(**{f.name: getattr(method, f.name) for f in fields(method)}, norm_statistics=kind)
    return made


WHY = {
    "no gradients": "takes no gradient of a pass",
    "own steps": "moves tensors by steps of its own too",
    "split": "takes its steps together with the server",
}
"""Word of a card (:data:`weft.federation.info.NEEDS`) that rules them out -> a clause about the method."""


@functools.cache
def _made(cls: Any, kind: Kind) -> Any:
    sends = f"{cls.info.sends}; means and variances of batch norms"
    card = replace(cls.info, slug=f"{cls.info.slug}+{kind}-norms", sends=sends)
    body = {"info": card, "_without_norms": cls, "__module__": WithStatistics.__module__, "__doc__": cls.__doc__}
    return type(f"{cls.__name__}WithStatistics", (WithStatistics, cls), body)
