"""A pack: K clients of one backbone trained in one forward and backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.dropout import rows_of
from weft.adaptation.optim import Optim, Optimizer
from weft.backbones.pixels import Pixels
from weft.errors import WeftError
from weft.federation import batch_statistics, hidden_rows, in_steps, plans
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.counting import Counting
from weft.federation.guidance import Guidance
from weft.federation.hidden_rows import HiddenRows
from weft.federation.message import Update
from weft.federation.passes import Passes
from weft.federation.round import Round
from weft.federation.scope import Scope, matches
from weft.federation.turn import Turn
from weft.federation.work import Work
from weft.tensors.forms import Value
from weft.tensors.keyed import generator, key
from weft.tensors.masked import Masked


class Pack(Passes):
    """K clients in their turn: what they received, how they train, and what they send.

    Attributes:
        facts: what each received beside tensors.
        received: the tensors that each received for this turn, of no part.
        counted: the round of each one's last turn that counted.
        at_server: it is the server's own, where GIVEN tensors may be trained.
        offsets: name -> [K, …], added to the gradients of every optimizer that is made afterwards.
        guidance: what else a rule over the method adds to its steps.
        hidden: what rows are hidden behind in this turn; None = the method sees them.
        work: what each client has done in this turn, by twins too.

    Args:
        load: the method's. hides: it is for a turn in which rows are hidden, if the run hides any.
    """

    def __init__(
        self,
        bench: Bench,
        turns: Sequence[Turn],
        round: Round,
        start: Mapping[str, Tensor] | None = None,
        at_server: bool = False,
        load: Callable[[Pack], None] | None = None,
        hides: bool = False,
    ):
        super().__init__(bench, turns, round, start)
        self.at_server = at_server
        self.facts, self.received = [t.facts for t in turns], [t.beside for t in turns]
        self.counted = [t.counted for t in turns]
        self.work: dict[str, Work] = {c.id: Work() for c in self.clients}
        self._optimizers: list[Optimizer] = []
        self._training: set[str] | None = None
        self.offsets: dict[str, Tensor] = {}
        self.guidance = Guidance()
        if load is not None:
            load(HiddenRows(self, bench.privacy).over(self) if hides and bench.privacy.rows is not None else self)

    def count_flops(self) -> None:
        """From here on, operations are counted too."""
        self.counting = Counting(self, self.work)

    # training ---------------------------------------------------------------------------------------------------------

    def batches(
        self,
        epochs: float | None = 1.0,
        steps: int | None = None,
        size: int = 32,
        stream: str = "main",
        caps: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """The turn's batches; a client that has finished leaves the batch. ``caps``: each client's most batches of an epoch."""
        plan = self._plans(epochs, steps, size, stream, caps)
        if self.hidden is not None:
            yield from self.hidden.drawn(self, [len(p) for p in plan], size, stream)
            return
        rows = [c.data.train for c in self.clients]
        for j in range(max((len(p) for p in plan), default=0)):
            yield self.assembled([p.batches[j] if j < len(p) else None for p in plan], rows, stream, j)

    def lengths(
        self, epochs: float | None = 1.0, steps: int | None = None, size: int = 32, caps: Sequence[int] | None = None
    ) -> Tensor:
        """[K] how many batches each client's turn has, see :meth:`batches`."""
        return torch.tensor([len(p) for p in self._plans(epochs, steps, size, "main", caps)], device=self.device)

    def of(self, clients: Iterable[ClientState]) -> Pack:
        """The same pack, the same tensors, but only these clients train."""
        view = copy.copy(self)
        view._training = {c.id for c in clients}
        return view

    def limited(self, to: np.ndarray) -> Pack:
        """The same pack, the same tensors, but its clients train on some of their rows alone.

        Args:
            to: bool [n], whether a row of the table may be trained on.
        """
        if self.hidden is not None:
            raise hidden_rows.looked("chooses among its clients' rows")
        view = copy.copy(self)
        kept = [replace(c.data, train=c.data.train[to[c.data.train]]) for c in self.clients]
        view.clients = [replace(c, data=data) for c, data in zip(self.clients, kept, strict=True)]
        return view

    def twin(self) -> Pack:
        """The same clients with the same values, for steps that leave nothing behind."""
        view = copy.copy(self)
        view.clients = [replace(c, kept=dict(c.kept), memo=dict(c.memo)) for c in self.clients]
        view.tensors, view.has, view._lacks = dict(self.tensors), dict(self.has), dict(self._lacks)
        view._weave = self._weave.of(torch.arange(len(self.clients), device=self.device), view.tensors)
        view._optimizers, view.offsets, view.guidance, view.listener = [], {}, Guidance(), None
        return view

    def _plans(
        self, epochs: float | None, steps: int | None, size: int, stream: str, caps: Sequence[int] | None = None
    ) -> list[plans.Plan]:
        each: Sequence[int | None] = [None] * len(self.clients) if caps is None else caps
        real = [c.data.train for c in self.clients] if self.hidden is None else self.hidden.rows
        some = [self._training is None or c.id in self._training for c in self.clients]
        rows = [own if trains else own[:0] for own, trains in zip(real, some, strict=True)]
        groups = self.bench.table.groups
        return [
            plans.turn(
                self._lengths[own],
                size=size,
                seed=self.bench.seed,
                client=c.id,
                turn=self.round.index,
                epochs=1.0 if epochs is None else epochs,
                steps=steps,
                stream=stream,
                by_length=self.bench.by_length,
                cap=cap,
                groups=None if groups is None else groups[own],
            )
            for c, own, cap in zip(self.clients, rows, each, strict=True)
        ]

    def assembled(self, chosen: Sequence[np.ndarray | None], rows: Sequence[np.ndarray], stream: str, step: int) -> Batch:
        """One step from positions in each client's training rows (None = not in this step).

        A row's key comes from its place in the step, for rows have other numbers in a table that is a client's alone.

        Args:
            rows: of the table, that are each client's own.
        """
        present = [(i, own[places]) for i, (own, places) in enumerate(zip(rows, chosen, strict=True)) if places is not None]
        width = max(1, *(len(own) for _, own in present))
        index = np.full((len(present), width), -1, dtype=np.int64)
        for row, (_, own) in zip(index, present, strict=True):
            row[: len(own)] = own
        drawn = [key(self.bench.seed, "step", self.round.index, self.clients[i].id, stream, step) for i, _ in present]
        keys = rows_of(torch.tensor(drawn), width)
        if isinstance(table := self.bench.table, Pixels):  # one of its views is trained on in the place of each picture
            index = table.viewed(index, keys.numpy())
        some = [i for i, _ in present] if len(present) < len(rows) else None
        batch = make_batch(self.task, table, index, some, self.device)
        return replace(batch, keys=keys.to(self.device))

    def seen_again(self, batch: Batch) -> Batch:
        """A step's rows in another view each; the same batch, where there are no others."""
        table = self.bench.table
        return replace(batch, index=table.another(batch.index)) if isinstance(table, Pixels) and table.views > 1 else batch

    def optimizer(
        self,
        *names: str,
        settings: Optim,
        epochs: float = 1.0,
        steps: int | None = None,
        size: int = 32,
        updates_per_batch: int = 1,
        total: int | None = None,
        caps: Sequence[int] | None = None,
        rates: Mapping[str, float | Tensor] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Optimizer:
        """An optimizer of exactly the tensors that match ``names``; GIVEN tensors are never among a client's.

        It moves copies: what ``params`` gave before stays as received.

        Args:
            total: steps that the schedule is spread over, if not those of the clients' batches. caps: see :meth:`batches`.
            rates: pattern -> multiple of the learning rate, one or [K], for the tensors that match, of the first that does.
            part: (i, n), where this turn is the i-th of n, counted from 0, that one schedule is spread over.
        """
        chosen = [n for n in self.tensors if matches(n, names) and self._trainable(n)]
        if not chosen:
            raise WeftError(f"no trainable tensor matches {', '.join(names)}")
        guide = self.guidance
        for name in chosen:  # the tensors of a pack of one are the very ones that the server holds
            if guide.centre:
                guide.begun.setdefault(name, self.tensors[name].detach())
            value = self.tensors[name].detach().clone(memory_format=torch.contiguous_format)
            self.tensors[name] = value.requires_grad_(True)
        counts = self.lengths(epochs, steps, size, caps) * updates_per_batch
        if total is not None:
            counts = torch.full_like(counts, total)
        down = [n for n in chosen if Scope.DOWN in self._scope(n)]
        offsets = {n: o.to(self.device, self.dtype) for n, o in self.offsets.items() if n in chosen}
        moving = {n: self.tensors[n] for n in chosen}
        factors: dict[str, float | Tensor] = dict(self.rates)
        for name in (n for n in chosen if rates and matches(n, rates)):
            factors[name] = next(f for p, f in (rates or {}).items() if matches(name, (p,))) * self.rates.get(name, 1.0)
        factors = {n: f for n, f in factors.items() if n in chosen}
        if guide.prox:
            settings = settings.but(prox=settings.prox + guide.prox)
        made = Optimizer(moving, settings, counts * part[1], down, offsets, factors, guide.corrections, guide.fixed)
        made.ticks += counts * part[0]
        self._optimizers.append(made)
        return made

    @property
    def rates(self) -> dict[str, float]:
        """Name -> what a part multiplies the learning rate of its tensor by."""
        return {p.names[role]: f for p in self._weave.placed for role, f in p.part.rates.items()}

    def _trainable(self, name: str) -> bool:
        return name in self.shapes and name not in self._statistics and (self.at_server or self._scope(name) != Scope.DOWN)

    def _scope(self, name: str) -> Scope:
        """All who have a tensor have it for one use."""
        return next(scopes[name] for scopes in self._scopes if name in scopes)

    def step(
        self,
        optimizer: Optimizer,
        objective: Callable[[Pack, Batch], Tensor],
        batch: Batch,
        only: Iterable[str] = (),
        tick: bool = True,
        entries: Mapping[str, Tensor] | None = None,
        watch: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> Tensor:
        """Move the optimizer's tensors that match ``only`` (all, if empty) down the gradient of each client's own loss.

        Of a tensor that was received in part the entries that were received move.

        Args:
            objective: of a pack and a batch, [k]; it is given instead of its value because whoever looks at rows one by one
                needs it of each. entries: name -> bool [K, …], those that may move, if not those that were received.
            watch: is given the gradients [K, …] by name, of entries that do not move too.

        Returns:
            the losses [k], for :meth:`report`.

        Raises:
            WeftError: none of the tensors matches.
        """
        patterns = tuple(only)
        names = [n for n in optimizer.params if matches(n, patterns)] if patterns else []
        if patterns and not names:
            raise WeftError(f"the optimizer holds no tensor that matches {', '.join(patterns)}")
        params = {n: optimizer.params[n] for n in names or optimizer.params}
        if self.hidden is not None:
            free = {**self.masks, **(entries or {})}
            return self.hidden.step(self, optimizer, objective, batch, list(params), tick, free, watch)
        self.worked(batch, 2 if self.guidance.centre else 1, moving=self.guidance.noted is None)
        shifts = self.guidance.shifts(lambda values: self._slopes(objective, batch, values, params))
        if self.counting is not None:
            self.counting.begun()
        with self._weave.noting() as noted:
            loss, whole = in_steps.losses(self, self._weave.placed, objective, batch)
        if self.held and not loss.requires_grad:  # its clients hold blocks that the output does not see: an encoder's alone
            whole = loss + 0 * sum(value.sum() for value in optimizer.params.values())
        if self.counting is not None:
            self.counting.differentiated(params)
        if self.guidance.noted is not None:
            self.guidance.noted.take(whole, batch, params)
            return loss.detach()
        rows = {n: self.rows(n) for n in optimizer.params}
        optimizer.step(whole, batch.clients, rows, names, tick, {**self.masks, **(entries or {})}, shifts, watch)
        batch_statistics.settle(self, noted)
        return loss.detach()

    def _slopes(
        self, objective: Callable[[Pack, Batch], Tensor], batch: Batch, values: Mapping[str, Tensor], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Gradients [K, …] of a batch's loss by these tensors, where the pack's have other values."""
        leaves = {n: values[n].detach().requires_grad_(True) for n in names}
        with self.values({**values, **leaves}):
            loss = in_steps.losses(self, self._weave.placed, objective, batch)[1].sum()
        if not loss.requires_grad:
            return {}
        return {n: g for n, g in self.slopes(loss, leaves).items() if g is not None}

    def slopes(self, loss: Tensor, by: Mapping[str, Tensor], again: bool = False) -> dict[str, Tensor | None]:
        """The gradient of a number by tensors, called by the names of the pack's that they stand in for; None where it has none.

        Args:
            again: it can be differentiated once more.
        """
        if self.counting is not None:
            self.counting.differentiated(by)
        found = torch.autograd.grad(loss, list(by.values()), allow_unused=True, create_graph=again)
        return dict(zip(by, found, strict=True))

    def worked(self, batch: Batch, times: int = 1, moving: bool = True) -> None:
        """Clients have worked through a batch so many times, and moved something by it."""
        for client, rows in batch.own(len(self.clients)):
            self.work.setdefault(self.clients[client].id, Work()).add(times * len(rows), moving)

    def optimized(self) -> set[str]:
        """Names of the tensors that optimizers of this turn hold."""
        return set().union(*(o.params for o in self._optimizers))

    def travelled(self, name: str) -> Tensor:
        """[K] the sum of the rates at which optimizers have moved a tensor in this turn."""
        found = torch.zeros(len(self.clients), device=self.device, dtype=self.dtype)
        for optimizer in self._optimizers:
            if name in optimizer.params:
                found += optimizer.travelled(name).to(found)
        return found

    @contextmanager
    def values(self, given: Mapping[str, Tensor]) -> Iterator[None]:
        """Passes inside read these tensors [K, …] in the place of the pack's own: masked, interpolated or perturbed ones.

        Raises:
            WeftError: the pack has no tensor of that name, or one of another shape.
        """
        for name, value in given.items():
            if name not in self.tensors or self.tensors[name].shape != value.shape:
                have = tuple(self.tensors[name].shape) if name in self.tensors else "none"
                raise WeftError(
                    f'"{name}" of shape {tuple(value.shape)} can stand in for no tensor of the pack, which has {have}'
                )
        own = {name: self.tensors[name] for name in given}
        self.tensors.update(given)
        try:
            yield
        finally:
            self.tensors.update(own)

    def gradients(
        self,
        objective: Callable[[Pack, Batch], Tensor],
        *names: str,
        size: int = 32,
        epochs: float = 1.0,
        steps: int | None = None,
    ) -> dict[str, Tensor]:
        """Each client's gradient [K, …] of its mean loss over its training rows, by tensors that match; nothing moves.

        Args:
            objective: the mean over a batch's rows, [k]. size: rows of a pass. steps: passes instead of epochs.
        """
        chosen = {n: self.tensors[n].detach().requires_grad_(True) for n in self.params(*names)}
        found = {n: torch.zeros_like(v) for n, v in chosen.items()}
        counts = torch.zeros(len(self.clients), device=self.device, dtype=self.dtype)
        for batch in (replace(b, keys=None) for b in self.batches(epochs, steps, size, "gradients")):
            self.worked(batch, moving=False)
            rows = batch.sizes.to(counts)
            who = torch.arange(len(counts), device=self.device) if batch.clients is None else batch.clients
            counts.index_add_(0, who, rows)
            with self.values(chosen):
                loss = (objective(self, batch) * rows).sum()
            for n, slope in self.slopes(loss, chosen).items():
                if slope is not None:
                    found[n] += slope
        return {n: v / counts.clamp(min=1).view(-1, *[1] * (v.dim() - 1)) for n, v in found.items()}

    def row_gradients(self, objective: Callable[[Pack, Batch], Tensor], batch: Batch, *names: str) -> dict[str, Tensor]:
        """Gradients [k, b, …] of each row's own loss, by tensors that match: for one pass every row is a client of its own.

        Of a padding row they are 0. Objectives that compare rows of a batch have other ones than the batch as a whole.
        """
        k, b = batch.index.shape
        who = torch.arange(len(self.clients), device=self.device) if batch.clients is None else batch.clients
        each, index = who.repeat_interleave(b), batch.index.reshape(-1, 1)
        keys = None if batch.keys is None else batch.keys.reshape(-1, 1)
        found = self.gradients_of_rows(objective, each, index, keys, names)
        return {n: g.unflatten(0, (k, b)) for n, g in found.items()}

    def gradients_of_rows(
        self,
        objective: Callable[[Pack, Batch], Tensor],
        each: Tensor,
        index: np.ndarray,
        keys: Tensor | None,
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        """Gradients [n, …] of n rows of the table, by tensors that match; of none of them where a tensor plays no part.

        Args:
            each: [n] the client in the pack of each. index: [n, 1] the rows, -1 = padding. keys: [n, 1], see :class:`Batch`.
        """
        size = 1 if any(p.part.alone for p in self._weave.placed) else max(len(each), 1)
        found = []
        for i in range(0, len(each), size):
            rows = make_batch(self.task, self.bench.table, index[i : i + size], None, self.device)
            rows = replace(rows, keys=None if keys is None else keys[i : i + size])
            found.append(self._gradients_of_rows(objective, each[i : i + size], rows, names))
        return {n: torch.cat([some[n] for some in found]) for n in found[0]}

    def _gradients_of_rows(
        self, objective: Callable[[Pack, Batch], Tensor], each: Tensor, rows: Batch, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Of rows that share a pass."""
        view = self.of_rows(each)
        leaves = {n: view.tensors[n].requires_grad_(True) for n in self.params(*names)}
        whole = in_steps.losses(view, view._weave.placed, objective, rows)[1].sum()
        slopes = view.slopes(whole, leaves) if whole.requires_grad else dict.fromkeys(leaves)
        return {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in slopes.items()}

    def of_rows(self, each: Tensor, shared: Mapping[str, Tensor] | None = None) -> Pack:
        """A pack in which every row is a client of its own.

        Args:
            each: [n] the client of each in this pack. shared: what all rows have in the place of a tensor, [1, …] by name.
        """
        view, shared = copy.copy(self), shared or {}
        place = each.tolist()
        view.clients, view.turns = [self.clients[i] for i in place], [self.turns[i] for i in place]
        view.adaptations, view.facts = [self.adaptations[i] for i in place], [self.facts[i] for i in place]
        view.received, view._scopes = [self.received[i] for i in place], [self._scopes[i] for i in place]
        view.tensors = {n: shared[n] if n in shared else t.detach().index_select(0, each) for n, t in self.tensors.items()}
        view.has = {n: h.index_select(0, each) for n, h in self.has.items()}
        view._lacks = {n: h.index_select(0, each) for n, h in self._lacks.items()}
        view.masks = {n: m.index_select(0, each) for n, m in self.masks.items() if n not in shared}
        view._weave, view.hidden, view.places = self._weave.of(each, view.tensors), None, each
        return view

    def rows(self, name: str) -> Tensor:
        """[K] bool: the clients that have the tensor, and the block it sits in."""
        has, block = self.has[name], self._blocks.get(name)
        return has if self._weave.hold is None or block is None else has & self._weave.hold[:, block]

    def minimise(
        self,
        objective: Callable[[Pack, Batch], Tensor],
        only: Iterable[str],
        settings: Optim,
        epochs: float,
        steps: int | None,
        size: int,
        caps: Sequence[int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Plain local training."""
        if not self.has_work():
            return
        optimizer = self.optimizer(*only, settings=settings, epochs=epochs, steps=steps, size=size, caps=caps, part=part)
        for batch in self.batches(epochs, steps, size, caps=caps):
            self.report(batch, self.step(optimizer, objective, batch))

    def has_work(self) -> bool:
        """Whether any client of the pack has training rows."""
        return any(len(c.data.train) for c in self.clients if self._training is None or c.id in self._training)

    def report(self, batch: Batch, loss: Tensor) -> None:
        """Called with each step's losses; the engine listens for progress and the round's mean loss."""
        if self.listener is not None:
            self.listener(self, batch, loss)

    listener: Callable[[Pack, Batch, Tensor], None] | None = None

    # values -------------------------------------------------------------------------------------------------------------

    def params(self, *names: str) -> dict[str, Tensor]:
        """Live tensors [K, …] that match."""
        return {n: t for n, t in self.tensors.items() if matches(n, names)}

    def copy(self, source: str, target: str, clients: Tensor | None = None) -> None:
        """Give part ``target`` the present values of part ``source`` (a frozen teacher), for some clients ([K] bool) or all."""
        for name, value in self.params(source).items():
            twin = target + name[len(source) :]
            new, has = value.detach().clone(), self.has[name]
            if clients is not None:
                chosen = clients.view(-1, *[1] * (new.dim() - 1))
                new, has = torch.where(chosen, new, self.tensors[twin]), torch.where(clients, has, self.has[twin])
            self.tensors[twin], self.has[twin] = new, has
            self._lacks.pop(twin, None)

    def value(self, k: int, name: str) -> Tensor:
        """One client's tensor, cut to its own size, on the CPU."""
        shape = self.shapes[name][k]
        assert shape is not None
        return self.tensors[name].detach()[k][tuple(slice(0, s) for s in shape)].to("cpu").clone()

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One keyed generator per client."""
        return [generator(self.bench.seed, purpose, self.round.index, c.id) for c in self.clients]

    def updates(
        self,
        facts: list[dict[str, Any]] | None = None,
        tensors: Sequence[Mapping[str, Value]] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Update]:
        """Each client's update: its UP tensors that an optimizer has moved, and ``tensors`` that are not of its adaptation (see
        :meth:`Method.uploads`). A client without rows sends nothing.

        Args:
            masks: name -> [K, …] bool, the entries that are sent of a tensor; of others those that were received.
        """
        masks = {**self.masks, **(masks or {})}
        moved = set().union(*(o.moved for o in self._optimizers)) if self._optimizers else set()
        for k, client in enumerate(self.clients):
            if client.n == 0:
                continue
            own: dict[str, Value] = {
                n: self._chosen(k, n, masks)
                for n in self.shapes
                if n in moved and Scope.UP in self._scopes[k].get(n, Scope(0)) and bool(self.rows(n)[k])
            }
            yield Update(
                tensors=own | (dict(tensors[k]) if tensors else {}),
                facts=dict(facts[k]) if facts else {},
                client=client,
                weight=float(client.n),
                adaptation=self.adaptations[k],
            )

    def _chosen(self, k: int, name: str, masks: Mapping[str, Tensor]) -> Value:
        """One client's tensor, or the entries of it that a mask chooses."""
        value = self.value(k, name)
        if name not in masks:
            return value
        return Masked.of(value, masks[name][k][tuple(slice(0, s) for s in value.shape)].cpu())

    def write_back(self) -> None:
        """Store KEEP tensors in the client states: the end of a completed turn."""
        for k, client in enumerate(self.clients):
            for name in self.shapes:
                if Scope.KEEP in self._scopes[k].get(name, Scope(0)) and bool(self.has[name][k]):
                    client.kept[name] = self.value(k, name)
            client.rounds_seen += 1
