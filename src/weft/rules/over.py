"""What the rules have in common: which tensors they act on, and how what they add to messages is kept apart from the method's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weft.errors import UserError
from weft.federation.layout import Adaptation, named
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.scope import SHARED
from weft.federation.server import ServerState
from weft.tensors.init import leading

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.bench import Bench
    from weft.federation.method import Method as Base
    from weft.tasks.task import Task
else:
    Base = object  # a mix-in: it stands before the class of a method, and brings no settings of the contract of its own

Shapes = dict[str, tuple[int, ...]]


class Over(Base):
    """A rule over a method, on the tensors that clients receive and send back (DOWN and UP).

    Attributes:
        word: its name. groups: first words of the names of tensors that it adds to messages, hence parts of the ledger.
        tells: keys of facts that it sends. sends: what it adds to what leaves a client, in words.
        stateful: it adds up over rounds what clients change, on both sides of the wire. exchanges: of one turn of training.
    """

    word: ClassVar[str]
    groups: ClassVar[tuple[str, ...]]
    tells: ClassVar[tuple[str, ...]] = ()
    sends: ClassVar[str] = ""
    stateful: ClassVar[bool] = False
    exchanges: ClassVar[int] = 1

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        found = super().adapt(backbone, task, client)
        if not client.id and not both_ways(found, backbone):
            raise UserError(
                f'{self.without()} has no tensor that clients receive and send back, so rule = "{self.word}" has nothing to act '
                "on: leave --rule out."
            )
        return found

    def acts_on(self, bench: Bench, client: ClientInfo) -> Shapes:
        """Shapes of a client's tensors that the rule acts on, by name.

        Args:
            bench: the client's own.
        """
        return both_ways(self.adapt(bench.backbone, bench.task, client), bench.backbone)

    def acts_on_any(self, pack: Pack) -> list[str]:
        """Names of the tensors in a pack that the rule acts on at some client."""
        distinct = {repr(a): a for a in pack.adaptations}.values()  # clients are many, these few
        found = [both_ways(a, pack.backbone) for a in distinct]
        return [n for n in dict.fromkeys(n for names in found for n in names) if n in pack.tensors]

    def guided(self, pack: Pack, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates of a turn whose steps a rule has guided.

        Raises:
            UserError: something in them was moved by no step.
        """
        names = set(self.acts_on_any(pack))
        for update in updates:
            if odd := sorted(update.tensors.keys() & names - pack.optimized()):
                raise UserError(
                    f'{self.without()} moves "{odd[0]}" by no optimizer whose steps rule = "{self.word}" could guide: leave '
                    "--rule out."
                )
            yield update

    def without(self) -> str:
        """The slug of the method."""
        return self.info.slug.removesuffix(f"+{self.word}")

    def at_hand(self, server: ServerState, client: ClientInfo, message: Message) -> Shapes:
        """Of those, the ones that the client holds once it has read a message: whoever is sent part of a model trains no more."""
        if not client.id:
            return {}
        since = server.synced.get(client.id, 0)
        every = self.acts_on(server.bench.of(client), client)
        return {n: s for n, s in every.items() if n in message.tensors or server.stamps.get(n, 0) <= since}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        if not client.id and not super().downloads(server.bench, client):
            return Message()  # to the server's own pack, which has all that it may receive of the method and nothing of a rule
        return super().send(server, client)

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send_to_test(server, client)  # which may be what `send` gives
        tensors = {n: v for n, v in message.tensors.items() if n.split("/", 1)[0] not in self.groups}
        return replace(message, tensors=tensors, facts={k: v for k, v in message.facts.items() if k not in self.tells})


def both_ways(adaptation: Adaptation, backbone: Backbone) -> Shapes:
    """Shapes of the tensors that are received, trained and sent back, by name."""
    trained = {name: own for name, own in adaptation.items() if own[0].mode != "normalises"}
    return {n: tuple(i.shape) for n, i, scope in named(trained, backbone) if SHARED in scope}


# messages -----------------------------------------------------------------------------------------------------------------


def within(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same under names of a group."""
    return {f"{group}/{n}": v for n, v in values.items()}


def apart(updates: Iterable[Update], group: str, take: Callable[[Update, dict[str, Tensor]], None]) -> Iterator[Update]:
    """Updates without the tensors of a group, which ``take`` is given under their own names."""
    for update in updates:
        mine = {n.removeprefix(f"{group}/"): v for n, v in update.tensors.items() if n.startswith(f"{group}/")}
        take(update, {n: v for n, v in mine.items() if isinstance(v, Tensor)})
        yield replace(update, tensors={n: v for n, v in update.tensors.items() if not n.startswith(f"{group}/")})


def laid(pack: Pack, name: str, values: Sequence[Tensor | None]) -> Tensor:
    """[K, …] of a tensor's own shape in the pack from one value a client, of its own size; 0 where there is none."""
    found = torch.zeros_like(pack.tensors[name])
    for row, value in zip(found, values, strict=True):
        if value is not None:
            shape = tuple(min(a, b) for a, b in zip(row.shape, value.shape, strict=True))
            row[tuple(slice(0, n) for n in shape)] = leading(value, shape).to(row)
    return found


def told(pack: Pack, group: str, name: str) -> list[Tensor | None]:
    """What each client has received of a group under a name."""
    values = [received.get(f"{group}/{name}") for received in pack.received]
    return [v if isinstance(v, Tensor) else None for v in values]


# weights ------------------------------------------------------------------------------------------------------------------


class Shares:
    """What part of a sum over all clients is one client's: its n_k, or 1, over that of all who have the tensor.

    Attributes:
        totals: by tensor, what all who have it weigh together; by its entries, where these are not everybody's.
    """

    def __init__(self, method: Over, server: ServerState):
        self.weights = {c.id: 1.0 if method.weighting == "uniform" else float(c.n) for c in server.clients}
        kinds: dict[tuple[str, str], tuple[ClientInfo, float]] = {}  # clients are many, adaptations few
        for client in server.clients:
            key = client.model, json.dumps(client.facts, sort_keys=True, default=repr)
            kinds[key] = client, kinds.get(key, (client, 0.0))[1] + self.weights.get(client.id, 0.0)
        self.totals: dict[str, float | Tensor] = {}
        for client, weight in kinds.values():
            for name, shape in method.acts_on(server.bench.of(client), client).items():
                if isinstance(held := server.shared.get(name), Tensor):
                    self.totals[name] = added(self.totals.get(name, 0.0), weight, shape, held.shape)

    def of(self, client: str, name: str, shape: Sequence[int]) -> float | Tensor:
        """A client's share of each entry of its tensor."""
        total = self.totals[name]
        weight = self.weights.get(client, 0.0)
        if isinstance(total, Tensor):
            return torch.where((part := leading(total, tuple(shape))) > 0, weight / part, 0.0)
        return weight / total if total else 0.0


def added(total: float | Tensor, value: float | Tensor, shape: Sequence[int], whole: Sequence[int]) -> float | Tensor:
    """A sum to which a value is added in the leading slice of a shape; one number as long as that is enough."""
    if tuple(shape) == tuple(whole) and not isinstance(value, Tensor) and not isinstance(total, Tensor):
        return total + value
    found = total.clone() if isinstance(total, Tensor) else torch.full(tuple(whole), total, dtype=torch.float64)
    found[tuple(slice(0, n) for n in shape)] += value
    return found
