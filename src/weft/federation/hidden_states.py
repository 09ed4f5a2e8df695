"""What is inside a pass: hidden states that leave blocks, features that a head reads, and what exits make of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.adaptation.attachments import Attachment, put_on
from weft.adaptation.exits import Exit
from weft.adaptation.row_tokens import row_tokens
from weft.errors import WeftError
from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from weft.adaptation.in_flight import Weight
    from weft.adaptation.weave import Weave
    from weft.backbones.backbone import Backbone
    from weft.federation.batch import Batch
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.counting import Counting


class HiddenStates:
    """What :class:`weft.federation.passes.Passes` can tell of the inside of a backbone."""

    bench: Bench
    backbone: Backbone
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    clients: list[ClientState]
    counting: Counting | None
    _weave: Weave
    _given: dict[str, Tensor] | None

    if TYPE_CHECKING:  # of passes

        def __call__(
            self, batch: Batch, use: Mapping[str, Weight] | None = None, insert: Mapping[int, Tensor] | None = None
        ) -> Output: ...

        def images(self, batch: Batch) -> Tensor: ...

        def cuts(self) -> list[int]: ...

        def _check_absent(self) -> None: ...

        def _in_lines(self, batch: Batch, use: Mapping[str, Weight] | None) -> bool: ...

        def _inserted(self, insert: Mapping[int, Tensor] | None) -> AbstractContextManager[None]: ...

        def _entering(
            self, batch: Batch, use: Mapping[str, Weight] | None, most: int | None = None
        ) -> tuple[dict[str, Tensor] | None, tuple[int, Tensor] | None]: ...

        def _read(self, batch: Batch, inputs: dict[str, Tensor] | None, use: Mapping[str, Weight] | None) -> Output: ...

    def features(
        self, batch: Batch, use: Mapping[str, Weight] | None = None, insert: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """[k, b, d] what the first layer of the head reads of each row in a plain pass; of a backbone with two towers the
        embeddings of pictures, not normalised.

        With no part on (``use={}``) it is the frozen model's own, for which no block is run a second time.

        Raises:
            WeftError: the backbone has no head that reads one vector of a row.
        """
        if self.backbone.names is not None:
            return self.images(batch)
        caught: list[Tensor] = []
        heads = [self.backbone.module(site.name) for site in self.backbone.heads[:1]]
        with put_on(Attachment(head, lambda _module, args, _out: caught.append(args[0])) for head in heads):
            self(batch, use, insert)
        read = caught[-1].to(self.dtype) if caught else None
        if read is not None and read.dim() == 3 and self.backbone.pools == "last":  # of all that it reads one counts
            last = torch.from_numpy(self.bench.table.lengths[batch.index].reshape(-1) - 1).clamp(0, read.shape[1] - 1)
            read = read[torch.arange(len(read), device=read.device), last.to(read.device)]
        if read is None or read.dim() != 2:
            raise WeftError(f'backbone "{self.backbone.name}" has no head that reads one vector of a row')
        return read.view(*batch.index.shape, -1)

    def read_tokens(self, batch: Batch, tokens: Tensor, use: Mapping[str, Weight] | None = None) -> Tensor:
        """Logits [k, b, n, C] of hidden states [k, b, n, d] that leave the last block, each as if it were the token that the head
        reads. The mean of several is what an affine head makes of the mean of what it reads.

        Raises:
            WeftError: rows are no pictures.
        """
        self._check_absent()
        if self.backbone.reads != "images":
            raise WeftError("single tokens can be read in rows of pictures alone")
        self.backbone.check_separate()
        inputs = self.backbone.to_model(self.bench.table.collate(batch.index.reshape(-1)))
        twice = tokens.flatten(0, 2).unsqueeze(1).expand(-1, 2, -1)  # some heads read all but the first
        self._weave.prefix = (len(self.backbone.blocks), twice.to(self.backbone.dtype))
        return self._read(batch, inputs, use).logits.view(*tokens.shape[:3], -1)

    def with_features(self, batch: Batch, use: Mapping[str, Weight] | None = None) -> tuple[Output, Tensor]:
        """What a plain pass gives, and [k, b, d] what leaves the last block at the token that the head reads of each row: its
        first or its last own one, or the mean of all where the head reads all; of a language model the last.

        Raises:
            UserError: the model calls one block many times, so that none is the last.
            WeftError: text is being written, whose tokens are not those of the batch's rows.
        """
        if self._given is not None:
            raise WeftError("features are those of whole rows, and there are none of a text that is being written")
        last = len(self.backbone.blocks) - 1
        out, states = self.with_hidden(batch, (last,), use)
        hidden, own = states[last]
        if self.backbone.pools == "all" and self.backbone.vocabulary is None:
            return out, (hidden * own[..., None]).sum(2) / own.sum(2).clamp(min=1)[..., None].to(hidden)
        first = self.backbone.pools == "first" and self.backbone.vocabulary is None
        place = torch.zeros_like(own[..., 0], dtype=torch.long) if first else (own.sum(2) - 1).clamp(min=0)
        return out, hidden.gather(2, place[..., None, None].expand(*place.shape, 1, hidden.shape[-1])).squeeze(2)

    def with_hidden(
        self,
        batch: Batch,
        blocks: Collection[int],
        use: Mapping[str, Weight] | None = None,
        insert: Mapping[int, Tensor] | None = None,
    ) -> tuple[Output, dict[int, tuple[Tensor, Tensor]]]:
        """What a plain pass gives, and what leaves each of these blocks: [k, b, T, d], and bool [k, b, T], the rows' own tokens.

        Of preferences b is twice the rows. A block that a client lacks hands on what came to it.

        Raises:
            UserError: the model calls one block many times, so that none can be told.
        """
        self._check_absent()
        weave, flat = self._weave, batch.index.reshape(-1)
        self.backbone.check_separate()
        with self._inserted(insert):
            if self._in_lines(batch, use):  # lines have no rows of their own
                inputs: dict[str, Tensor] | None = self.backbone.to_model(self.bench.table.collate(flat))
                weave.prefix = None
                if self.counting is not None:
                    self.counting.entered(self.bench, self.clients, batch, [0] * len(self.clients))
            else:
                inputs, weave.prefix = self._entering(batch, use, min(blocks))
            weave.kept = dict.fromkeys(blocks)
            try:
                out, kept = self._read(batch, inputs, use), weave.kept
            finally:
                weave.kept = {}
        assert inputs is not None
        found = {}
        for block, hidden in kept.items():
            assert hidden is not None
            states = hidden.unflatten(0, (len(batch.index), -1)).to(self.dtype)
            found[block] = states, self._own(batch, block, states, inputs)
        return out, found

    def _own(self, batch: Batch, block: int, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """bool [k, b, T], the own tokens of a batch's rows in what leaves a block."""
        shape = states.shape[:3]
        if any(s.block == block and s.stack == "decoder" for s in self.backbone.linears):
            return batch.mask.to(states.device).view(shape)
        own = row_tokens(self.backbone, inputs, batch.index).to(states.device)
        return (own if own.dim() > 2 else own.unsqueeze(-1)).expand(shape)

    def exits(self, batch: Batch, ends: Mapping[str, int], use: Mapping[str, Weight] | None = None) -> dict[str, Output]:
        """What a model's exits (:class:`weft.adaptation.exits.Exit`) predict, by name: a pass, and the tail once for each exit.

        The outputs of clients that lack an exit, or a block below it, mean nothing.

        Args:
            ends: exit -> the index of the block whose output it reads. use: as in a plain pass.
        """
        self._check_absent()
        weave, blocks = self._weave, len(self.backbone.blocks)
        self.backbone.check_separate()
        inputs, weave.prefix = self._entering(batch, use, min(ends.values()))
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
        return Exit.lens(w, hidden.reshape(len(batch.index), -1, hidden.shape[-1])).view_as(hidden) if w else hidden
