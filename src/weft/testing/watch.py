"""What passes through a method's own hooks while a run is played: what clients enter with, send, and what a server reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from weft.federation.layout import named
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.scope import Scope
from weft.federation.server import ServerState
from weft.tensors.forms import Value
from weft.tensors.integers import Integers
from weft.tensors.masked import Masked
from weft.testing.compare import dense

Tensors = dict[str, Tensor]


@dataclass
class Snapshot:
    """A server at one moment, as a checkpoint would hold it."""

    tensors: Tensors
    plain: dict[str, Any]
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, server: ServerState) -> Snapshot:
        tensors, plain = server.tensors_and_json()
        notes = {client: server.notes.get(client) for client in server.notes.manifest}
        return cls({n: v.clone() for n, v in tensors.items()}, copy.deepcopy(plain), notes)

    def onto(self, server: ServerState) -> None:
        """Make a server hold this, whose notes may lie elsewhere."""
        server.restore({n: v.clone() for n, v in self.tensors.items()}, copy.deepcopy(self.plain))
        server.notes.manifest = {}
        for client, values in self.notes.items():
            server.notes.put(client, values)


@dataclass
class Aggregation:
    """One aggregation.

    Attributes:
        before: the server as the rule finds it. updates: copies of what it read.
        overwritten: what the rule wrote into, in place, and must not. kept: updated values that still are a client's own memory.
    """

    round: Any
    cohort: list[Any]
    before: Snapshot
    updates: list[Update]
    overwritten: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> list[Update]:
        """The updates, in tensors of their own."""
        return [copied(u) for u in self.updates]


@dataclass
class Seen:
    """What was noted, by round index.

    Attributes:
        entered: client -> the tensors with UP that it entered with. sent: client -> what it sent.
    """

    entered: dict[int, dict[str, Tensors]] = field(default_factory=dict)
    sent: dict[int, dict[str, Tensors]] = field(default_factory=dict)
    turns: dict[int, Aggregation] = field(default_factory=dict)


def copied(update: Update) -> Update:
    return replace(update, tensors={n: _clone(v) for n, v in update.tensors.items()}, facts=copy.deepcopy(update.facts))


def _clone(value: Value) -> Value:
    if isinstance(value, Integers):
        return Integers(value.values.clone(), value.below)
    return Masked(value.entries.clone(), value.mask.clone()) if isinstance(value, Masked) else dense(value).clone()


@contextmanager
def watching(method: Method) -> Iterator[Seen]:
    """Note what passes through ``train`` and ``aggregate`` of this method's class."""
    cls: Any = type(method)
    own = {n: cls.__dict__[n] for n in ("train", "aggregate") if n in cls.__dict__}
    train, aggregate = cls.train, cls.aggregate
    seen = Seen()

    def noted_train(self: Method, pack: Pack) -> Iterable[Update]:
        t = pack.round.index
        for k, client in enumerate(pack.clients):
            mine = seen.entered.setdefault(t, {}).setdefault(client.id, {})
            for name, _, scope in named(pack.adaptations[k], pack.backbone):
                if Scope.UP in scope:
                    with suppress(KeyError, AssertionError):  # it has none of this tensor in this round
                        mine[name] = pack.value(k, name).clone()
        for update in train(self, pack):
            seen.sent.setdefault(t, {})[update.client.id] = {n: dense(v) for n, v in copied(update).tensors.items()}
            yield update

    def noted_aggregate(self: Method, server: ServerState, updates: Iterable[Update]) -> None:
        given = list(updates)
        turn = Aggregation(server.round, list(server.cohort), Snapshot.of(server), [copied(u) for u in given])
        broadcast = dict(server.shared)  # the very values that clients were given
        copies = {n: dense(v).clone() for n, v in broadcast.items()}
        aggregate(self, server, iter(given))
        turn.overwritten = [f"{n} of what was broadcast" for n, v in broadcast.items() if not _same(dense(v), copies[n])]
        for was, now in zip(turn.updates, given, strict=True):
            now_dense = {n: dense(v) for n, v in now.tensors.items()}
            changed = [n for n, v in was.tensors.items() if n not in now_dense or not _same(now_dense[n], dense(v))]
            turn.overwritten += [f"{n} of the update of {now.client.id}" for n in changed]
        theirs = {_place(v): u.client.id for u in given for v in u.tensors.values() if isinstance(v, Tensor) and v.numel()}
        turn.kept = [n for n, v in server.shared.items() if isinstance(v, Tensor) and v.numel() and _place(v) in theirs]
        seen.turns[server.round.index] = turn

    cls.train, cls.aggregate = noted_train, noted_aggregate
    try:
        yield seen
    finally:
        for name in ("train", "aggregate"):
            if name in own:
                setattr(cls, name, own[name])
            else:
                delattr(cls, name)


def _same(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and (a == b).all())


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
