"""What K clients of one backbone compute in one pass, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.attachments import put_on
from weft.adaptation.in_flight import Weight
from weft.adaptation.placed import place, stack
from weft.adaptation.row_tokens import row_tokens
from weft.adaptation.weave import Weave
from weft.backbones.token_table import Tokens
from weft.errors import WeftError
from weft.federation import answers, plans, taps
from weft.federation.alike import check_alike
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.counting import Counting
from weft.federation.hidden_rows import HiddenRows, looked
from weft.federation.hidden_states import HiddenStates
from weft.federation.layout import named
from weft.federation.round import Round
from weft.federation.start_values import first, initial
from weft.federation.towers import Towers
from weft.federation.turn import Turn
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tensors.forms import Value
from weft.tensors.masked import Masked


class Passes(Towers, HiddenStates):
    """K >= 1 clients; every tensor of theirs has a leading client axis [K, …], smaller ranks are zero-padded.

    Attributes:
        clients: their states, in order. round: the round in progress.
        turns: what each enters it with, before the method makes a model of that. start: values handed out in set-up.
        tensors: live values [K, …] by name. shapes: of each client's own, by name; None = it has none. has: [K] bool, by name.
        masks: name -> [K, …] bool, the entries that each has received, of the tensors that somebody has received in part.
        counting: of operations; None = nobody asks for them.

    Args:
        turns: of the clients. start: start values handed out in set-up, instead of drawn ones.

    Raises:
        UserError: its clients differ in more than sizes, see :func:`weft.federation.alike.check_alike`.
    """

    def __init__(self, bench: Bench, turns: Sequence[Turn], round: Round, start: Mapping[str, Tensor] | None = None):
        self.bench, self.round = bench, round
        self.turns, self.start = list(turns), dict(start or {})
        self.backbone, self.task = bench.backbone, bench.task
        self.clients, self.adaptations = [t.client for t in turns], [t.adaptation for t in turns]
        device = bench.backbone.device
        self.device, self.dtype = device, bench.dtype
        check_alike(bench.backbone, turns)
        placed = place(bench.backbone, [{n: p for n, (p, _) in a.items()} for a in self.adaptations], device, bench.dtype)
        entering = [initial(bench, turn, round, self.start) for turn in turns]
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
        self.masks = self._received_in_part([t.held for t in turns])
        self._weave = Weave(bench.backbone, placed, self.tensors, len(turns), bench.recompute)
        # blocks of the text tower are numbered by themselves, and nobody lacks one
        self._blocks = {name: None if p.site.tower else p.site.block for p in placed for name in p.names.values()}
        self._statistics = {n for p in placed if p.part.mode == "normalises" for n in p.names.values()}
        self._scopes = [{n: scope for n, _, scope in named(a, bench.backbone)} for a in self.adaptations]
        nobody = torch.zeros(len(turns), dtype=torch.bool, device=device)
        everybody = ~nobody
        lacks = {n: (everybody if p.has is None else p.has) & ~self.has.get(n, nobody) for p in placed for n in p.names.values()}
        self._lacks = {name: some for name, some in lacks.items() if bool(some.any())}
        self._lengths = bench.table.lengths
        self._given: dict[str, Tensor] | None = None
        self._taps: Mapping[str, taps.Tap] = {}
        self.counting: Counting | None = None
        self.hidden: HiddenRows | None = None
        self.places: Tensor | None = None

    @property
    def weave(self) -> Weave:
        """Its parts on the backbone."""
        return self._weave

    def _received_in_part(self, held: Sequence[Mapping[str, Value]]) -> dict[str, Tensor]:
        names = dict.fromkeys(n for values in held for n, v in values.items() if isinstance(v, Masked) and n in self.tensors)
        found = {n: torch.ones_like(self.tensors[n], dtype=torch.bool) for n in names}
        for name, mask in found.items():
            for row, values in zip(mask, held, strict=True):
                if isinstance(value := values.get(name), Masked):
                    row[:] = False
                    row[tuple(slice(0, n) for n in value.shape)] = value.mask.to(row.device)
        return found

    def start_values(self, k: int) -> dict[str, Tensor]:
        """One client's tensors as they were before anybody had trained them, on the CPU."""
        return first(self.bench, self.adaptations[k], self.start)

    # forward ----------------------------------------------------------------------------------------------------------

    def __call__(
        self, batch: Batch, use: Mapping[str, Weight] | None = None, insert: Mapping[int, Tensor] | None = None
    ) -> Output:
        """Logits [k, b, C].

        Args:
            use: part -> weight (a number, [k] or [k, b]); None = all parts at 1. Parts not named are off; heads and deltas
                stay on.
            insert: block -> tokens [k, b, n, d], put behind the first token of each row where it enters that block; they stay.
                Of pictures only.
        """
        self._check_absent()
        with self._inserted(insert):
            inputs, self._weave.prefix = self._entering(batch, use)
            return self._read(batch, inputs, use)

    def _entering(
        self, batch: Batch, use: Mapping[str, Weight] | None, most: int | None = None
    ) -> tuple[dict[str, Tensor] | None, tuple[int, Tensor] | None]:
        """What the model reads of a batch's rows (None where they lie in lines), and the cached output of the blocks below.

        Args:
            most: blocks that may be left out; None = all that lie below the parts.
        """
        self.check_seen()
        cuts = [cut if most is None else min(cut, most) for cut in self.cuts()]
        cut = min(cuts)
        if self.counting is not None:
            self.counting.entered(self.bench, self.clients, batch, cuts)
        if self._given is not None:
            return self._given, None
        if self._in_lines(batch, use):
            return None, None
        flat = batch.index.reshape(-1)
        if cut and self.bench.prefix is not None:
            inputs, hidden = self.bench.prefix.gather(self.bench.table, flat, cut)
            return inputs, None if hidden is None else (cut, hidden)
        return self.backbone.to_model(self._collated(flat, use)), None

    def _collated(self, flat: np.ndarray, use: Mapping[str, Weight] | None) -> dict[str, Tensor]:
        """Rows of the table with the tokens that parts put into them, so far as the backbone takes that many."""
        table, room = self.bench.table, self._weave.own_tokens.room(use)
        if not room:
            return table.collate(flat)
        assert isinstance(table, Tokens)  # nothing else has an embedding of words
        return self._weave.own_tokens.of_rows(table.collate(flat, most=self.backbone.max_length - room), use)

    def _read(self, batch: Batch, inputs: dict[str, Tensor] | None, use: Mapping[str, Weight] | None) -> Output:
        if self.counting is not None:
            self.counting.passed(self, batch, use)
        if self._taps and inputs is not None:
            if self.held or self._given is not None:
                raise WeftError(
                    "taps see the rows of a batch in all blocks: not those that skip some, nor a text that is written"
                )
            with put_on(taps.attachments(self.backbone, self._taps, batch.index, inputs)):
                return self._untapped(batch, inputs, use)
        return self._untapped(batch, inputs, use)

    def _untapped(self, batch: Batch, inputs: dict[str, Tensor] | None, use: Mapping[str, Weight] | None) -> Output:
        if self._given is not None:
            return self._next(self._given, batch, use)
        if inputs is None or self.backbone.vocabulary is not None:
            return answers.read(self._weave, self.bench, batch, inputs, use)
        own = row_tokens(self.backbone, inputs, batch.index)
        return self._forward(inputs, batch.clients, len(batch.index), use, batch.dropping, batch.valid, own)

    def _in_lines(self, batch: Batch, use: Mapping[str, Weight] | None) -> bool:
        """Whether the batch's rows lie in lines, in which they would have no masks of their own, nor be told apart by taps or by
        parts that look at whole rows.
        """
        drops = batch.dropping is not None and any(p.part.dropout for p in self._weave.placed)
        apart = drops or bool(self._taps) or self._weave.whole_rows
        return not apart and answers.in_lines(self.bench, use)

    @contextmanager
    def _inserted(self, insert: Mapping[int, Tensor] | None) -> Iterator[None]:
        """
        Raises:
            WeftError: rows are no pictures, some clients lack blocks, or there is no such block.
            UserError: blocks take no tokens beside those of a picture.
        """
        if insert and (self.backbone.reads != "images" or self.backbone.shared_blocks or self.held):
            raise WeftError("tokens can be put into rows of pictures alone, where every client has all blocks")
        if insert and not all(0 <= block < len(self.backbone.blocks) for block in insert):
            raise WeftError(f"tokens enter at blocks 0 to {len(self.backbone.blocks) - 1}, not at {sorted(insert)}")
        if insert:
            self.backbone.check_more_tokens()
        self._weave.insert = insert or {}
        try:
            yield
        finally:
            self._weave.insert = {}

    @contextmanager
    def tapped(self, functions: Mapping[str, taps.Tap]) -> Iterator[None]:
        """Passes inside show these functions what goes into linear layers, by name, of rows that begin at the first block.

        Raises:
            UserError: what goes into a layer is not of rows alone, see :func:`weft.federation.taps.check`.
        """
        taps.check(self.backbone, functions)
        before, self._taps = self._taps, functions
        try:
            yield
        finally:
            self._taps = before

    @contextmanager
    def reading(self, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Passes inside read these inputs, in the place of their batch's rows, and give logits of the next token: [k, b, C]."""
        self._given = inputs
        try:
            yield
        finally:
            self._given = None

    def _next(self, inputs: dict[str, Tensor], batch: Batch, use: Mapping[str, Weight] | None) -> Output:
        k, own = len(batch.index), row_tokens(self.backbone, inputs, batch.index)
        with self._weave.attached(batch.clients, k, use, own=own):
            logits = self.backbone.model(**inputs, use_cache=False).logits[:, -1]
        return Output(logits.to(self.device, self.dtype).view(k, -1, logits.shape[-1]))

    @contextmanager
    def woven(self, clients: Tensor | None, k: int, use: Mapping[str, Weight] | None) -> Iterator[None]:
        """The parts are at work in the backbone, on whatever runs inside, from its first block on."""
        if self._taps:
            raise WeftError("taps see the rows of a batch, and not a text that is being written")
        self._check_absent()
        self._weave.prefix = None
        with self._weave.attached(clients, k, use):
            yield

    @property
    def held(self) -> bool:
        """Whether some clients lack blocks."""
        return self._weave.hold is not None

    def _forward(
        self,
        inputs: dict[str, Tensor],
        clients: Tensor | None,
        k: int,
        use: Mapping[str, Weight] | None,
        keys: Tensor | None = None,
        valid: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Output:
        inputs = self._weave.own_tokens.of_names(inputs, k, use)
        if self.counting is not None and "classes" in inputs:
            self.counting.named(self.clients, clients, use, inputs, k)
        with self._weave.attached(clients, k, use, keys, valid, own):
            logits = self.backbone.model(**inputs).logits
        if logits.dim() == 3 and self._weave.own_tokens.room(use):  # of each token, of which those of parts are none to tag
            logits = logits[inputs["input_ids"] >= 0]
        return Output(logits.to(self.device, self.dtype).view(k, -1, logits.shape[-1]))

    def own(self, values: Tensor) -> Tensor:
        """Values [K, …] of the turn's clients, for the clients of this pass: in a pass in which every row is a client of its own,
        those of its client. What an objective knows from outside of its pack goes through here.
        """
        return values if self.places is None else values.index_select(0, self.places.to(values.device))

    def check_seen(self) -> None:
        """
        Raises:
            UserError: rows are hidden in this turn, and a method looks at them outside of its steps.
        """
        if self.hidden is not None:
            raise looked("looks at rows outside of its steps")

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Class indices of table rows, of any shape; a client asks for rows of its own."""
        self.check_seen()
        if self.places is not None and bool((rows < 0).any()):
            raise looked("looks at labels of more rows than one in a step")
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
        """How many blocks lie below every part; none as long as layers are tapped, which a cached pass would not run."""
        return min(self.cuts())

    def cuts(self) -> list[int]:
        """How many blocks lie below every part of each client, see :meth:`cut`."""
        if self._weave.hold is not None or self.bench.prefix is None or self._taps:
            return [0] * len(self.clients)
        layers = len(self.backbone.blocks)
        lowest = [min([layers if self.backbone.embedding is None else layers + 1, *self._weave.insert])] * len(self.clients)
        for p in self._weave.placed:
            if p.site.tower or p.site.role in ("head", "head.norm", "embedding", "values"):
                continue
            has, block = None if p.has is None else p.has.tolist(), p.site.block or 0
            lowest = [min(low, block) if has is None or has[i] else low for i, low in enumerate(lowest)]
        anywhere = self.backbone.starts_anywhere
        return [low if anywhere or low >= layers else 0 for low in lowest]

    # prediction -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        forward: Callable[[Self, Batch], Output],
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
        self, forward: Callable[[Self, Batch], Output], rows: list[np.ndarray], tokens: int = 8192
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
