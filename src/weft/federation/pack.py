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

from weft.adaptation.exits import Exit
from weft.adaptation.optim import Optim, Optimizer
from weft.adaptation.placed import place, stack
from weft.adaptation.weave import Weave, Weight
from weft.errors import WeftError
from weft.federation import answers, plans
from weft.federation.alike import check_alike
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.guidance import Guidance
from weft.federation.layout import named
from weft.federation.message import Update
from weft.federation.round import Round
from weft.federation.scope import Scope, matches
from weft.federation.start_values import initial
from weft.federation.turn import Turn
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tensors.forms import Value
from weft.tensors.keyed import generator


class Pack:
    """K >= 1 clients; every trainable tensor has a leading client axis [K, …], smaller ranks are zero-padded.

    Attributes:
        clients: their states, in order. round: the round in progress. facts: what each received beside tensors.
        received: the tensors that each received for this turn, of no part.
        counted: the round of each one's last turn that counted.
        at_server: it is the server's own, where GIVEN tensors may be trained.
        offsets: name -> [K, …], added to the gradients of every optimizer that is made afterwards.
        guidance: what else a rule over the method adds to its steps.
        tensors: live values [K, …] by name. shapes: of each client's own, by name; None = it has none. has: [K] bool, by name.

    Args:
        turns: of the clients. start: start values handed out in set-up, instead of drawn ones. load: the method's.

    Raises:
        UserError: its clients differ in more than sizes, see :func:`weft.federation.alike.check_alike`.
    """

    def __init__(
        self,
        bench: Bench,
        turns: Sequence[Turn],
        round: Round,
        start: Mapping[str, Tensor] | None = None,
        at_server: bool = False,
        load: Callable[[Pack], None] | None = None,
    ):
        self.bench, self.at_server, self.round = bench, at_server, round
        self.backbone, self.task = bench.backbone, bench.task
        self.clients, self.adaptations = [t.client for t in turns], [t.adaptation for t in turns]
        self.facts, self.received = [t.facts for t in turns], [t.beside for t in turns]
        self.counted = [t.counted for t in turns]
        device = bench.backbone.device
        self.device, self.dtype = device, bench.dtype
        check_alike(bench.backbone, turns)
        placed = place(bench.backbone, [{n: p for n, (p, _) in a.items()} for a in self.adaptations], device, bench.dtype)
        entering = [initial(bench, turn, round, start or {}) for turn in turns]
        self.tensors: dict[str, Tensor] = {}
        self.has: dict[str, Tensor] = {}
        self.shapes: dict[str, list[tuple[int, ...] | None]] = {}
        for name in dict.fromkeys(n for v in entering for n in v):
            values = [v.get(name) for v in entering]
            present = torch.tensor([v is not None for v in values], device=device)
            for role, tensor in stack(values, device, self.dtype).items():
                full = f"{name}.{role}" if role else name
                self.tensors[full], self.has[full] = tensor, present
            self.shapes[name] = [tuple(v.shape) if v is not None else None for v in values]
        self._weave = Weave(bench.backbone, placed, self.tensors, len(turns), bench.recompute)
        # blocks of the text tower are numbered by themselves, and nobody lacks one
        self._blocks = {name: None if p.site.tower else p.site.block for p in placed for name in p.names.values()}
        self._scopes = [{n: scope for n, _, scope in named(a, bench.backbone)} for a in self.adaptations]
        nobody = torch.zeros(len(turns), dtype=torch.bool, device=device)
        everybody = ~nobody
        lacks = {n: (everybody if p.has is None else p.has) & ~self.has.get(n, nobody) for p in placed for n in p.names.values()}
        self._lacks = {name: some for name, some in lacks.items() if bool(some.any())}
        self._optimizers: list[Optimizer] = []
        self._lengths = bench.table.lengths
        self._training: set[str] | None = None
        self._given: dict[str, Tensor] | None = None
        self.offsets: dict[str, Tensor] = {}
        self.guidance = Guidance()
        if load is not None:
            load(self)

    # forward ----------------------------------------------------------------------------------------------------------

    def __call__(self, batch: Batch, use: Mapping[str, Weight] | None = None) -> Output:
        """Logits [k, b, C].

        Args:
            use: part -> weight (a number, [k] or [k, b]); None = all parts at 1. Parts not named are off; heads and deltas
                stay on.
        """
        self._check_absent()
        inputs, self._weave.prefix = self._entering(batch, use, self.cut())
        return self._read(batch, inputs, use)

    def _entering(
        self, batch: Batch, use: Mapping[str, Weight] | None, cut: int
    ) -> tuple[dict[str, Tensor] | None, tuple[int, Tensor] | None]:
        """What the model reads of a batch's rows (None where they lie in lines), and the cached output of the blocks below."""
        if self._given is not None:
            return self._given, None
        if answers.in_lines(self.bench, use):
            return None, None
        flat = batch.index.reshape(-1)
        if cut and self.bench.prefix is not None:
            inputs, hidden = self.bench.prefix.gather(self.bench.table, flat, cut)
            return inputs, None if hidden is None else (cut, hidden)
        return self.backbone.to_model(self.bench.table.collate(flat)), None

    def _read(self, batch: Batch, inputs: dict[str, Tensor] | None, use: Mapping[str, Weight] | None) -> Output:
        if self._given is not None:
            return self._next(self._given, batch.clients, len(batch.index), use)
        if inputs is None or self.backbone.vocabulary is not None:
            return answers.read(self._weave, self.bench, batch, inputs, use)
        return self._forward(inputs, batch.clients, len(batch.index), use)

    def exits(self, batch: Batch, ends: Mapping[str, int], use: Mapping[str, Weight] | None = None) -> dict[str, Output]:
        """What a model's exits (:class:`weft.adaptation.exits.Exit`) predict, by name: a pass, and the tail once for each exit.

        The outputs of clients that lack an exit, or a block below it, mean nothing.

        Args:
            ends: exit -> the index of the block whose output it reads. use: as in a plain pass.
        """
        self._check_absent()
        weave, blocks = self._weave, len(self.backbone.blocks)
        self.backbone.check_separate()
        inputs, weave.prefix = self._entering(batch, use, min(self.cut(), *ends.values()))
        weave.kept = dict.fromkeys(ends.values())
        try:
            self._read(batch, inputs, use)
            kept = weave.kept
        finally:
            weave.kept = {}
        parts = {p.part_name: 1.0 for p in weave.placed if p.part.mode != "reads"} if use is None else use
        found = {}
        for name, end in ends.items():
            hidden = kept[end]
            assert hidden is not None
            weave.prefix = (blocks, self._lens(name, batch, hidden))
            found[name] = self._read(batch, inputs, {**parts, name: 1.0})
        return found

    def _lens(self, name: str, batch: Batch, hidden: Tensor) -> Tensor:
        """Hidden states [k·b, T, d] as the exit of a language model changes them; others stay."""
        w = {n.rsplit("/", 1)[1]: batch.of(v) for n, v in self.tensors.items() if n.startswith(f"{name}/lens/")}
        return Exit.lens(w, hidden.view(len(batch.index), -1, hidden.shape[-1])).view_as(hidden) if w else hidden

    @contextmanager
    def reading(self, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Passes inside read these inputs, in the place of their batch's rows, and give logits of the next token: [k, b, C]."""
        self._given = inputs
        try:
            yield
        finally:
            self._given = None

    def _next(self, inputs: dict[str, Tensor], clients: Tensor | None, k: int, use: Mapping[str, Weight] | None) -> Output:
        with self._weave.attached(clients, k, use):
            logits = self.backbone.model(**inputs, use_cache=False).logits[:, -1]
        return Output(logits.to(self.device, self.dtype).view(k, -1, logits.shape[-1]))

    @contextmanager
    def woven(self, clients: Tensor | None, k: int, use: Mapping[str, Weight] | None) -> Iterator[None]:
        """The parts are at work in the backbone, on whatever runs inside, from its first block on."""
        self._check_absent()
        self._weave.prefix = None
        with self._weave.attached(clients, k, use):
            yield

    @property
    def held(self) -> bool:
        """Whether some clients lack blocks."""
        return self._weave.hold is not None

    def _forward(self, inputs: dict[str, Tensor], clients: Tensor | None, k: int, use: Mapping[str, Weight] | None) -> Output:
        inputs = self._weave.inputs(inputs, k, use)
        with self._weave.attached(clients, k, use):
            logits = self.backbone.model(**inputs).logits
        return Output(logits.to(self.device, self.dtype).view(k, -1, logits.shape[-1]))

    @torch.no_grad()
    def embed(self, rows: list[np.ndarray], chunk: int = 256) -> list[Tensor]:
        """Embeddings of each client's table rows on the frozen backbone, no part on: K tensors [n_k, e], not normalised."""
        if self.backbone.embedding is None:
            raise WeftError(f'backbone "{self.backbone.name}" has no embedding of whole rows')
        table, prefix = self.bench.table, self.bench.prefix
        found = []
        for index in rows:
            pieces = [torch.zeros(0, self.backbone.embedding.d_in, dtype=self.dtype, device=self.device)]
            for start in range(0, len(index), chunk):
                part = index[start : start + chunk]
                if prefix is not None:
                    z = prefix.gather(table, part, len(self.backbone.blocks) + 1)[0]["image_embeds"]
                else:
                    z = self.backbone.model.embed_images(**self.backbone.to_model(table.collate(part)))
                pieces.append(z.to(self.dtype))
            found.append(torch.cat(pieces))
        return found

    def tail(self, embeddings: Tensor, use: Mapping[str, Weight] | None = None) -> Output:
        """What the model makes of embeddings [K, n, e], as :meth:`embed` gives them: logits [K, n, C]."""
        self._check_absent()
        self._weave.prefix = None
        k = len(embeddings)
        return self._forward({"image_embeds": embeddings.flatten(0, 1)}, None, k, use)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Class indices of table rows, of any shape; a client asks for rows of its own."""
        return self.bench.table.labels[rows]

    def loss(self, out: Output, batch: Batch) -> Tensor:
        """The task's loss per client, [k]; padding rows weigh nothing."""
        return self.task.loss(batch.within(out), batch.labels, batch.mask, batch.index.shape[1], batch.beside)

    def hold(self, blocks: Tensor | None) -> None:
        """[K, L] bool: the blocks that each client has; the rows of the others skip a block. None = everybody has all."""
        if blocks is not None:
            self.backbone.check_separate()
        self._weave.hold = None if blocks is None else blocks.to(self.device)

    def _check_absent(self) -> None:
        """A tensor that some client has not got must not be used for it: only blocks that it does not hold may lack one."""
        hold = self._weave.hold
        for name, lacks in self._lacks.items():
            block = self._blocks.get(name)
            unused = torch.zeros_like(lacks) if hold is None or block is None else ~hold[:, block]
            if bool((lacks & ~unused).any()):
                who = self.clients[int((lacks & ~unused).nonzero()[0])].id
                raise WeftError(f'client {who} has no value for "{name}", neither received nor its own')

    def cut(self) -> int:
        """How many blocks lie below every part."""
        if self._weave.hold is not None or self.bench.prefix is None:
            return 0
        layers = len(self.backbone.blocks)
        lowest = layers if self.backbone.embedding is None else layers + 1
        for p in self._weave.placed:
            if p.site.tower or p.site.role in ("head", "head.norm", "embedding", "values"):
                continue
            lowest = min(lowest, 0 if p.site.block is None else p.site.block)
        return lowest if self.backbone.separate_blocks or lowest >= layers else 0

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
        for j in range(max((len(p) for p in plan), default=0)):
            yield self._assemble([p.batches[j] if j < len(p) else None for p in plan])

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
        return [
            plans.turn(
                self._lengths[c.data.train if self._training is None or c.id in self._training else c.data.train[:0]],
                size=size,
                seed=self.bench.seed,
                client=c.id,
                turn=self.round.index,
                epochs=1.0 if epochs is None else epochs,
                steps=steps,
                stream=stream,
                by_length=self.bench.by_length,
                cap=cap,
            )
            for c, cap in zip(self.clients, each, strict=True)
        ]

    def _assemble(self, rows: list[np.ndarray | None]) -> Batch:
        """One step from positions in each client's training rows (None = not in this step)."""
        present = [i for i, r in enumerate(rows) if r is not None and len(r)]
        width = max(len(rows[i]) for i in present)  # type: ignore[arg-type]
        index = np.full((len(present), width), -1, dtype=np.int64)
        for row, i in zip(index, present, strict=True):
            row[: len(rows[i])] = self.clients[i].data.train[rows[i]]  # type: ignore[arg-type]
        return make_batch(self.task, self.bench.table, index, present if len(present) < len(rows) else None, self.device)

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
        factors = {n: next(f for p, f in rates.items() if matches(n, (p,))) for n in chosen if matches(n, rates)} if rates else {}
        if guide.prox:
            settings = settings.but(prox=settings.prox + guide.prox)
        made = Optimizer(moving, settings, counts * part[1], down, offsets, factors, guide.corrections, guide.fixed)
        made.ticks += counts * part[0]
        self._optimizers.append(made)
        return made

    def _trainable(self, name: str) -> bool:
        return name in self.shapes and (self.at_server or self._scope(name) != Scope.DOWN)

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
    ) -> Tensor:
        """Move the optimizer's tensors that match ``only`` (all, if empty) down the gradient of each client's own loss.

        Args:
            objective: of a pack and a batch, [k]; it is given instead of its value because whoever looks at rows one by one
                needs it of each. entries: name -> bool [K, …], those that may move.

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
        shifts = self.guidance.shifts(lambda values: self._slopes(objective, batch, values, params))
        loss = whole = objective(self, batch)
        if self.held and not loss.requires_grad:  # its clients hold blocks that the output does not see: an encoder's alone
            whole = loss + 0 * sum(value.sum() for value in optimizer.params.values())
        if self.guidance.noted is not None:
            self.guidance.noted.take(whole, batch, params)
            return loss.detach()
        rows = {n: self.rows(n) for n in optimizer.params}
        optimizer.step(whole, batch.clients, rows, names, tick, entries, shifts)
        return loss.detach()

    def _slopes(
        self, objective: Callable[[Pack, Batch], Tensor], batch: Batch, values: Mapping[str, Tensor], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Gradients [K, …] of a batch's loss by these tensors, where the pack's have other values."""
        leaves = {n: values[n].detach().requires_grad_(True) for n in names}
        with self.values({**values, **leaves}):
            loss = objective(self, batch).sum()
        if not loss.requires_grad:
            return {}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}

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
        self, objective: Callable[[Pack, Batch], Tensor], *names: str, size: int = 32, epochs: float = 1.0
    ) -> dict[str, Tensor]:
        """Each client's gradient [K, …] of its mean loss over its training rows, by tensors that match; nothing moves.

        Args:
            objective: the mean over a batch's rows, [k]. size: rows of a pass.
        """
        chosen = {n: self.tensors[n].detach().requires_grad_(True) for n in self.params(*names)}
        found = {n: torch.zeros_like(v) for n, v in chosen.items()}
        counts = torch.zeros(len(self.clients), device=self.device, dtype=self.dtype)
        for batch in self.batches(epochs, None, size, "gradients"):
            rows = torch.from_numpy((batch.index >= 0).sum(1)).to(counts)
            who = torch.arange(len(counts), device=self.device) if batch.clients is None else batch.clients
            counts.index_add_(0, who, rows)
            with self.values(chosen):
                loss = (objective(self, batch) * rows).sum()
            slopes = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
            for total, slope in zip(found.values(), slopes, strict=True):
                if slope is not None:
                    total += slope
        return {n: v / counts.clamp(min=1).view(-1, *[1] * (v.dim() - 1)) for n, v in found.items()}

    def row_gradients(self, objective: Callable[[Pack, Batch], Tensor], batch: Batch, *names: str) -> dict[str, Tensor]:
        """Gradients [k, b, …] of each row's own loss, by tensors that match: for one pass every row is a client of its own.

        Of a padding row they are 0. Objectives that compare rows of a batch have other ones than the batch as a whole.
        """
        k, b = batch.index.shape
        who = torch.arange(len(self.clients), device=self.device) if batch.clients is None else batch.clients
        each, index = who.repeat_interleave(b), batch.index.reshape(-1, 1)
        size = 1 if any(p.part.alone for p in self._weave.placed) else len(each)
        found = [self._row_gradients(objective, each[i : i + size], index[i : i + size], names) for i in range(0, k * b, size)]
        return {n: torch.cat([some[n] for some in found]).unflatten(0, (k, b)) for n in found[0]}

    def _row_gradients(
        self, objective: Callable[[Pack, Batch], Tensor], each: Tensor, index: np.ndarray, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Gradients [n, …] of the rows ``index`` ([n, 1]), each of the client at ``each`` ([n]) of the pack."""
        view = copy.copy(self)
        place = each.tolist()
        view.clients = [self.clients[i] for i in place]
        view.adaptations, view.facts = [self.adaptations[i] for i in place], [self.facts[i] for i in place]
        view.received, view._scopes = [self.received[i] for i in place], [self._scopes[i] for i in place]
        view.tensors = {n: t.detach().index_select(0, each) for n, t in self.tensors.items()}
        view.has = {n: h.index_select(0, each) for n, h in self.has.items()}
        view._lacks = {n: h.index_select(0, each) for n, h in self._lacks.items()}
        view._weave = self._weave.of(each, view.tensors)
        leaves = {n: view.tensors[n].requires_grad_(True) for n in self.params(*names)}
        rows = make_batch(self.task, self.bench.table, index, None, self.device)
        slopes = torch.autograd.grad(objective(view, rows).sum(), list(leaves.values()), allow_unused=True)
        return {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(leaves.items(), slopes, strict=True)}

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
    ) -> None:
        """Plain local training."""
        if not self.has_work():
            return
        optimizer = self.optimizer(*only, settings=settings, epochs=epochs, steps=steps, size=size, caps=caps)
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
        self, facts: list[dict[str, Any]] | None = None, tensors: list[dict[str, Tensor]] | None = None
    ) -> Iterator[Update]:
        """Each client's update: its UP tensors that an optimizer has moved, and ``tensors`` that are not of its adaptation (see
        :meth:`Method.uploads`). A client without rows sends nothing.
        """
        moved = set().union(*(o.moved for o in self._optimizers)) if self._optimizers else set()
        for k, client in enumerate(self.clients):
            if client.n == 0:
                continue
            own: dict[str, Value] = {
                n: self.value(k, n)
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

    def write_back(self) -> None:
        """Store KEEP tensors in the client states: the end of a completed turn."""
        for k, client in enumerate(self.clients):
            for name in self.shapes:
                if Scope.KEEP in self._scopes[k].get(name, Scope(0)) and bool(self.has[name][k]):
                    client.kept[name] = self.value(k, name)
            client.rounds_seen += 1

    # prediction -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        forward: Callable[[Pack, Batch], Output],
        rows: list[np.ndarray],
        tokens: int = 8192,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Logits of each client on its own list of table rows: K tensors [n_k, C], in the order given.

        There is one of each thing to predict, and those of one row are next to each other.

        Args:
            tokens: padded tokens per forward pass. dtype: of the logits.
        """
        found: list[list[Tensor]] = [[] for _ in rows]
        order: list[list[np.ndarray]] = [[] for _ in rows]
        for batch, places in self._passes(rows, tokens):
            logits, mask = forward(self, batch).logits.to("cpu", dtype), batch.mask.cpu().view(*batch.index.shape, -1)
            for row, valid, (i, mine) in zip(logits, mask, places.items(), strict=True):
                things = valid[: len(mine)].sum(1).numpy()
                found[i].append(row[valid.flatten()])
                order[i].append(np.repeat(mine, things))
        nothing = torch.zeros(0, len(self.task.classes))
        sorted_ = [np.argsort(np.concatenate(o), kind="stable") if o else None for o in order]
        return [torch.cat(f)[o] if o is not None else nothing for f, o in zip(found, sorted_, strict=True)]

    @torch.no_grad()
    def observe(
        self, forward: Callable[[Pack, Batch], Output], rows: list[np.ndarray], tokens: int = 8192
    ) -> list[Observed | None]:
        """What the task keeps of each client's own list of table rows, in the order given; None of no rows.

        Args:
            tokens: padded tokens per forward pass.
        """
        found: list[list[Observed]] = [[] for _ in rows]
        order: list[list[np.ndarray]] = [[] for _ in rows]
        for batch, places in self._passes(rows, tokens):
            out, (k, b) = batch.within(forward(self, batch)), batch.index.shape
            labels, mask = batch.labels.cpu().view(k, b, -1), batch.mask.cpu().view(k, b, -1)
            beside = None if batch.beside is None else batch.beside.cpu()
            for row, (i, mine) in enumerate(places.items()):
                n = len(mine)
                own = out.of(row, n, labels.shape[-1])
                more = None if beside is None else beside[row, :n]
                found[i].append(self.task.observe(own, labels[row, :n], mask[row, :n], more))
                order[i].append(mine)
        return [
            Observed.concatenate(f).take(np.argsort(np.concatenate(o))) if f else None for f, o in zip(found, order, strict=True)
        ]

    def _passes(self, rows: list[np.ndarray], tokens: int) -> Iterator[tuple[Batch, dict[int, np.ndarray]]]:
        """Batches over each client's rows, and the positions in them: client of the pack -> its share of the batch."""
        k = len(self.clients)
        plan = [list(plans.chunks_by_length(self._lengths[r], max(tokens // k, 1))) for r in rows]
        for j in range(max((len(p) for p in plan), default=0)):
            places = {i: plan[i][j] for i in range(k) if j < len(plan[i])}
            index = np.full((len(places), max(map(len, places.values()))), -1, dtype=np.int64)
            for row, (i, mine) in zip(index, places.items(), strict=True):
                row[: len(mine)] = rows[i][mine]
            present = list(places) if len(places) < k else None
            yield make_batch(self.task, self.bench.table, index, present, self.device), places
