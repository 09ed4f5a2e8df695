"""The server's complete state: what is not in here does not survive a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weft.errors import WeftError
from weft.federation.arrivals import period_at
from weft.federation.averages import Averages
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.common_facts import nobody
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation, named
from weft.federation.message import APPENDED, ClientInfo, Message, beside
from weft.federation.noted_places import NotedPlaces
from weft.federation.pack import Pack
from weft.federation.robust_mean import Robust
from weft.federation.round import Round
from weft.federation.saved_state import SavedState
from weft.federation.scope import Scope, matches
from weft.federation.server_step import ServerStep
from weft.federation.turn import Turn
from weft.storage.notes import Notes
from weft.tensors import growing
from weft.tensors.forms import Value
from weft.tensors.init import Init, leading
from weft.tensors.integers import Shape
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site
    from weft.tasks.task import Task


Shapes = dict[str, tuple[int, ...]]


class Rule(Protocol):
    """What the state asks of its method, see :class:`weft.federation.method.Method`."""

    @property
    def info(self) -> MethodInfo: ...
    @property
    def weighting(self) -> str: ...
    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation: ...
    def send(self, server: ServerState, client: ClientInfo) -> Message: ...
    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]: ...
    def load(self, pack: Pack) -> None: ...


class ServerState(SavedState, Averages, NotedPlaces):
    """What the coordinator holds.

    Attributes:
        shared: DOWN tensors by name, each stamped with when it was last written, so that only news is sent.
        masked: by name of those that are Masked, the stamp of when their mask was last another.
        memo: the method's own state (tensors, LowRanks and JSON values). hiding: that of what hides clients.
        clients: all known clients.
        notes: the same of each client, where a checkpoint must not hold everybody's. counted: the last round in which a client's
            update counted, by client. said: facts of clients that the server has renewed, by client.
        start: start values handed to clients in set-up (a warm-started head); the others are drawn from the seed.
        clock: stamp of the next write; 0 = start values, which every client has. synced: clock at a client's last download.
        rounds: planned number of rounds. periods: in which clients' rows arrive. round: the one in progress. cohort: who takes
            part in it.
        robust: what stands in for a mean. remarks: what that rule did in this round, for its record.
        step: what the server makes of a mean.
        weighting: of updates in a mean, ``examples`` or ``uniform``. adaptation: of a client without facts.
        method: whose state it is; None has nothing to load.
        trained: by client ("" = for all), what the server has trained itself in the steps of the round's turns, until the method
            takes it as the round is closed, see :mod:`weft.federation.split`; no part of a checkpoint.
        public: rows that are nobody's secret, in a table of their own on the server's backbone, for :meth:`pack`; None = none.
    """

    def __init__(
        self,
        bench: Bench,
        adaptation: Adaptation,
        clients: list[ClientInfo],
        rounds: int,
        start: dict[str, Tensor] | None = None,
        robust: Robust | None = None,
        method: Rule | None = None,
        step: ServerStep | None = None,
        notes: Notes | None = None,
        public: Bench | None = None,
        periods: int = 1,
    ):
        self.bench, self.adaptation, self.clients, self.rounds = bench, adaptation, clients, rounds
        self.public, self.periods = public, periods
        self.robust, self.method, self.step = robust or Robust(), method, step or ServerStep()
        self.weighting = "examples" if method is None else method.weighting
        self.remarks: dict[str, Any] = {}
        self.seed = bench.seed
        self.start = dict(start or {})
        self.shared: dict[str, Value] = {}
        self.stamps: dict[str, int] = {}
        self.masked: dict[str, int] = {}
        self.terms: dict[str, growing.Terms] = {}  # of LowRanks
        self.memo: dict[str, Any] = {}
        self.hiding: dict[str, Any] = {}
        self.notes = notes or Notes()
        self.counted: dict[str, int] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self.synced: dict[str, int] = {}
        self.round = Round(0)
        self.clock = 1
        self._layouts: dict[str, tuple[tuple[str, str], Shapes]] = {}  # by client, and what they were made of
        self._kinds: dict[tuple[tuple[str, tuple[int, ...]], ...], Shapes] = {}
        # these caches hold nothing that can't be made again
        self._news: dict[tuple[int, int, int, tuple[str, ...]], dict[str, Value]] = {}
        self._wholes: dict[str, tuple[LowRank, LowRank]] = {}  # a value, and what goes out for it
        self._starts: dict[tuple[str, tuple[int, ...]], Value] = {}
        self.cohort: list[ClientInfo] = []
        self.trained: dict[str, dict[str, Tensor]] = {}
        for name, init, scope in named(self.adaptation, bench.backbone):
            if Scope.DOWN in scope:
                self._begin(name, init)

    def _begin(self, name: str, init: Init) -> None:
        """Let a DOWN value be its start value, which every client has."""
        if init.kind == "lowrank":
            self.shared[name] = LowRank.zeros(*init.shape, dtype=self.bench.dtype)
            self.terms[name] = []
        else:
            self.shared[name] = self.bench.begin(init, name, self.start)
        self.stamps[name] = 0

    # reading --------------------------------------------------------------------------------------------------------

    def sites(self, part: str) -> list[Site]:
        """Where one part sits."""
        return self.adaptation[part][0].sites(self.bench.backbone)

    def period_at(self, t: int) -> int:
        """Whose rows clients train on in round ``t``."""
        return period_at(t, self.rounds, self.periods)

    def generator(self, purpose: str, *more: object) -> torch.Generator:
        """Keyed (seed, purpose, round, …)."""
        return generator(self.seed, purpose, self.round.index, *more)

    def stale(self, client: ClientInfo, only: str | Iterable[str] = "*") -> Message:
        """DOWN values written since the client's last download, of what it has parts for, cut to its size.

        Of LowRanks it is the new terms or the whole, whichever is less.

        Args:
            only: patterns of the tensors; a method that makes a client's values itself leaves them out.
        """
        patterns = (only,) if isinstance(only, str) else tuple(only)
        since = self.synced.get(client.id, 0)
        shapes = self._shapes(client)
        key = (self.clock, since, id(shapes), patterns)
        if key in self._news:  # the same broadcast for everybody who was last here at that time
            return Message(dict(self._news[key]))
        message = Message()
        for name in self._due(client):
            value = self.shared[name]
            if not matches(name, patterns):
                continue
            if not isinstance(value, LowRank):
                message.tensors[name] = _leading(value, shapes[name])
                continue
            new = self._new_terms(name, since)
            if new is None:
                message.tensors[name] = self._whole(name)
            else:
                cut = value.rank - new
                message.tensors[name + APPENDED] = LowRank(B=value.B[:, cut:], A=value.A[cut:], scale=value.scale)
        self._news = {k: v for k, v in self._news.items() if k[0] == self.clock} | {key: message.tensors}
        return Message(dict(message.tensors))

    def _due(self, client: ClientInfo) -> list[str]:
        """Names of the DOWN values of the client that are newer than its copies."""
        since, shapes = self.synced.get(client.id, 0), self._shapes(client)
        return [name for name in self.shared if name in shapes and self.stamps[name] > since]

    def _new_terms(self, name: str, since: int) -> int | None:
        """How much rank a low-rank value gained since; None where the whole is no more than that."""
        value = self.shared[name]
        new = growing.after(self.terms[name], since)
        return new if isinstance(value, LowRank) and new < min(value.rank, *value.shape) else None

    def _shapes(self, client: ClientInfo) -> Shapes:
        """Of a client's DOWN tensors: one and the same object for all clients with the same."""
        about = (client.model, json.dumps(client.facts, sort_keys=True, default=repr))
        known = self._layouts.get(client.id)
        if known is None or known[0] != about:
            own = self.bench.of(client)
            parts = self.adaptation if self.method is None else self.method.adapt(own.backbone, own.task, client)
            shapes = {n: tuple(i.shape) for n, i, scope in named(parts, own.backbone) if Scope.DOWN in scope}
            known = about, self._kinds.setdefault(tuple(shapes.items()), shapes)
            self._layouts[client.id] = known
        return known[1]

    def _whole(self, name: str) -> LowRank:
        """A low-rank value at no more rank than it needs, for whoever has nothing of it."""
        value = self.shared[name]
        assert isinstance(value, LowRank)
        if name not in self._wholes or self._wholes[name][0] is not value:
            self._wholes[name] = value, value.compress()
        return self._wholes[name][1]

    def receipt(self, message: Message, client: ClientInfo) -> None:
        """Note that the client is up to date, if the message held all its news.

        With part of the news, its low-rank values are of different ages, and terms would be added to some that have them: it gets
        everything anew.
        """
        since = self.synced.get(client.id, 0)

        def came(name: str) -> bool:  # a whole value is more than its terms
            terms = isinstance(self.shared[name], LowRank) and self._new_terms(name, since) is not None
            return name in message.tensors or (terms and name + APPENDED in message.tensors)

        if all(map(came, self._due(client))):
            self.synced[client.id] = self.clock
        elif any(isinstance(value, LowRank) for value in message.tensors.values()):
            self.synced[client.id] = 0

    def known_masks(self, client: ClientInfo, message: Message) -> dict[str, Value]:
        """The server's values in a message whose masks the client has from an earlier one."""
        since = self.synced.get(client.id, 0)
        own = {n: v for n, v in message.tensors.items() if isinstance(v, Masked) and v is self.shared.get(n)}
        return {n: v for n, v in own.items() if self.masked[n] <= since}

    def held_by(self, client: ClientInfo, adaptation: Adaptation, message: Message) -> dict[str, Value]:
        """The values that the client has once it has read ``message``.

        These are start values from set-up, and DOWN values received now or unchanged since it last read one.

        Args:
            adaptation: the client's.
        """
        since = self.synced.get(client.id, 0)
        found: dict[str, Value] = dict(self.start)
        for name, init, scope in named(adaptation, self.bench.of(client).backbone):
            if Scope.DOWN not in scope:
                continue
            if name in message.tensors:
                found[name] = message.tensors[name]
            elif name + APPENDED in message.tensors:
                found[name] = self.shared[name]
            elif self.stamps.get(name, 0) == 0:
                found[name] = self._start(name, init)
            elif self.stamps[name] <= since:
                found[name] = self._cut(name, init)
        return found

    def _cut(self, name: str, init: Init) -> Value:
        """What a client of another size holds of a value."""
        return _leading(self.shared[name], init.shape)

    def _start(self, name: str, init: Init) -> Value:
        """The start value at a client: the server's own, or the same draw in the client's size (another rank)."""
        value = self.shared.get(name)
        if value is not None and tuple(value.shape) == init.shape:
            return value
        if isinstance(value, Tensor) and init.within == tuple(value.shape):
            return leading(value, init.shape)
        if (name, init.shape) not in self._starts:
            self._starts[name, init.shape] = self.bench.draw(init, name)
        return self._starts[name, init.shape]

    def pack(self, public: bool = False) -> Pack:
        """A pack of one at the server, with every DOWN tensor at its newest value and the others at their start.

        Args:
            public: it has the public rows to train on: its batches are drawn by seed and round, as those of a client are.

        Raises:
            WeftError: there are no public rows.
        """
        bench, rows, load = self.bench, np.zeros(0, dtype=np.int64), None
        if public:
            if self.public is None:
                raise WeftError("there are no public rows to make a pack of: ask whether server.public is None")
            bench, rows = self.public, np.arange(len(self.public.table))
        turn = Turn(ClientState("", len(rows), data=Splits(rows, rows[:0], rows[:0])), self.adaptation, dict(self.shared))
        if self.method is not None:
            load = self.method.load
            itself = nobody(self.clients)
            if self.method.downloads(self.bench, itself):
                turn.beside = beside(self.adaptation, self.bench.backbone, self.method.send(self, itself).tensors)
        return Pack(bench, [turn], self.round, self.start, at_server=True, load=load)

    # writing --------------------------------------------------------------------------------------------------------

    def write(self, name: str, value: Value) -> None:
        """Replace a DOWN value; clients get it at their next download."""
        if name not in self.shared:
            raise WeftError(f'the server holds no DOWN tensor "{name}"')
        self._news.clear()
        old, self.shared[name] = self.shared[name], value
        self.stamps[name] = self.clock
        if isinstance(value, LowRank):
            self.terms[name] = [(self.clock, value.rank)]
        elif isinstance(value, Masked) and not (isinstance(old, Masked) and torch.equal(old.mask, value.mask)):
            self.masked[name] = self.clock

    def reset(self, *names: str) -> None:
        """Put the DOWN values that match back to their start values, of which nobody is told: they are used no more.

        Clients elsewhere go on holding what they last read of them.
        """
        for name, init, scope in named(self.adaptation, self.bench.backbone):
            if Scope.DOWN in scope and matches(name, names):
                self._begin(name, init)
        self._news.clear()

    def grow(self, name: str, term: LowRank) -> None:
        """Add a term to a growing low-rank value, see :mod:`weft.tensors.growing`; terms that clients lack stay apart."""
        old = self.shared[name]
        assert isinstance(old, LowRank)
        terms = [*self.terms[name], (self.clock, term.rank)]
        keep = growing.owed(terms, (since for since in self.synced.values() if since), min(old.shape))
        value = growing.grow(old, term, keep)
        self._news.clear()
        self.shared[name] = value
        self.stamps[name] = self.clock
        self.terms[name] = terms if value.rank == old.rank + term.rank else growing.folded(terms, keep, value.rank)

    def renew(self, client: str, **facts: Any) -> None:
        """Give facts of a client new values: it is told them with every question, and gets everything anew, in its new size.

        Args:
            client: its id. facts: keys that the method asks for and ``renews``, with plain JSON values.
        """
        renews = () if self.method is None else self.method.info.renews
        if odd := sorted(facts.keys() - set(renews)):
            raise WeftError(f'the fact "{odd[0]}" is none that the method renews')
        before = self.said.get(client, {})
        if (now := before | facts) != before:
            self.said[client] = now
            if client in self.synced:
                self.synced[client] = 0

    def introduce(self, clients: Iterable[ClientState]) -> None:
        """Let the states of its clients, and ``clients``, say what the server has renewed."""
        if self.method is None or not self.method.info.renews:
            return
        self.clients = []
        for client in clients:
            client.renew(self.said.get(client.id, {}))
            self.clients.append(client.info(self.method.info.asks))


def _leading(value: Value, shape: tuple[int, ...]) -> Value:
    """What a client of another size holds of a value; others than tensors are of one size."""
    return leading(value, shape) if isinstance(value, Tensor) else value
