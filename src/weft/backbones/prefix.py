"""Frozen-prefix cache: what lies below the lowest part is a constant function of the example, so it is computed once.

The hidden state that enters block ``cut`` is kept per row of the token table; later steps start there. If every block lies
below the parts (only a head is trained) and the head reads one token, or the mean of a map, only that is kept. A backbone with
two towers has its pictures' embeddings and those of their patches kept too. Nothing is evicted: beyond ``memory`` bytes rows go
to a temporary file.
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from weft.backbones.maps import mean
from weft.backbones.token_table import Tokens

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Embedding
    from weft.backbones.run_table import Table

    Kept: TypeAlias = int | Embedding  # what enters a block, by its index, or an embedding

BATCH_TOKENS = 8192
WINDOW = 256  # rows of the table, where those of one client are neighbours


class PrefixCache:
    """Hidden states of one backbone's lower blocks for the rows of one table.

    Args:
        memory: bytes kept in memory before rows go to a temporary file.
    """

    def __init__(self, backbone: Backbone, memory: int = 1 << 30):
        self.backbone = backbone
        self.memory = memory
        self.used = 0
        self._table: Table | None = None
        self._rows: dict[Kept, dict[int, Tensor | int]] = {}  # what -> row -> its value, or where it lies in the file
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None

    def gather(self, table: Table, index: np.ndarray, cut: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Model inputs and the hidden states entering block ``cut`` for the rows ``index`` ([m], -1 = padding): [m, T, d].

        One ``cut`` beyond the last block, in a model with an embedding of whole images, the inputs are those embeddings
        (``image_embeds`` [m, e]), and there are no hidden states.
        """
        if cut > len(self.backbone.blocks):
            return {"image_embeds": self.embedded(table, index, "image").squeeze(1)}, None
        rows = self._filled(table, index, cut)
        if self._one_token(cut):
            inputs = table.collate(np.full(len(index), -1))  # one token a row: only shapes matter from here on
            if isinstance(table, Tokens):
                inputs["input_ids"].fill_(1 if table.pad == 0 else 0)
        else:
            inputs = table.collate(index)
        width = 1 if self._one_token(cut) else inputs["input_ids"].shape[1] if "input_ids" in inputs else table.lengths.max()
        width = self.backbone.maps[cut][0] if self.backbone.maps else width
        return self.backbone.to_model(inputs), self._collected(rows, index, (int(width), *self._trailing(cut)))

    def embedded(self, table: Table, index: np.ndarray, what: Embedding) -> Tensor:
        """Embeddings of the rows ``index`` ([m], -1 = padding, whose are 0): [m, 1, e], or [m, V, e] of the V patches."""
        rows = self._filled(table, index, what)
        assert self.backbone.embedding is not None
        trailing = self._trailing(what)
        some = next(iter(rows.values()), None)  # pictures have as many patches each
        return self._collected(rows, index, (1 if some is None else len(self._read(some, trailing)), *trailing))

    def _trailing(self, what: Kept) -> tuple[int, ...]:
        """The shape of what is kept of a row, but for its first axis: tokens, or the features of a map."""
        if isinstance(what, str):
            assert self.backbone.embedding is not None
            return (self.backbone.embedding.d_in,)
        if not self.backbone.maps:
            return (self.backbone.d,)
        return (1, 1) if self._one_token(what) else self.backbone.maps[what][1:]

    def _filled(self, table: Table, index: np.ndarray, what: Kept) -> dict[int, Tensor | int]:
        """What is kept of rows, once it is of all of these."""
        if table is not self._table:  # row numbers mean nothing in another table
            self._table, self._rows, self.used, self._file = table, {}, 0, None
        rows = self._rows.setdefault(what, {})
        missing = np.array([i for i in dict.fromkeys(index.tolist()) if i >= 0 and i not in rows], dtype=np.int64)
        if len(missing):
            self._fill(table, missing, what)
        return rows

    def _collected(self, rows: dict[int, Tensor | int], index: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """[m, *shape] on the model's device, 0 where a row has less."""
        found = torch.zeros(len(index), *shape, dtype=self.backbone.dtype)
        for row, i in zip(found, index.tolist(), strict=True):
            if i >= 0:
                value = self._read(rows[i], shape[1:])
                row[: len(value)] = value
        return found.to(self.backbone.device)

    def _one_token(self, cut: int) -> bool:
        """Whether one token, or the mean over a map, is all that is read of what leaves the last block."""
        return cut == len(self.backbone.blocks) and self.backbone.pools != "all"

    @torch.no_grad()
    def _fill(self, table: Table, missing: np.ndarray, what: Kept) -> None:
        # A row's last bits depend on the rows computed with it: those are fixed, whatever was asked for and in what order.
        for window in np.unique(missing // WINDOW):
            rows = np.arange(window * WINDOW, min((window + 1) * WINDOW, len(table.lengths)))
            order = rows[np.argsort(-table.lengths[rows], kind="stable")]
            start = 0
            while start < len(order):
                count = max(BATCH_TOKENS // max(int(table.lengths[order[start]]), 1), 1)
                self._compute(table, order[start : start + count], what)
                start += count

    def _compute(self, table: Table, index: np.ndarray, what: Kept) -> None:
        inputs = self.backbone.to_model(table.collate(index))
        rows = self._rows[what]
        if isinstance(what, str):
            for i, value in zip(index.tolist(), self.backbone.embed(inputs, what).to("cpu"), strict=True):
                rows[i] = self._store(value)
            return
        cut = what
        blocks = [self.backbone.module(b) for b in self.backbone.blocks]
        caught: list[Tensor] = []
        last = cut == len(blocks)

        def keep(_m: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])

        def after(_m: nn.Module, _a: object, out: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(out[0] if isinstance(out, tuple) else out)

        handle = (
            blocks[-1].register_forward_hook(after) if last else blocks[cut].register_forward_pre_hook(keep, with_kwargs=True)
        )
        try:
            self.backbone.model(**inputs | self.backbone.class_inputs())
        finally:
            handle.remove()
        if self.backbone.maps and self._one_token(cut):
            caught = [mean(caught[-1])]
        hidden = caught[-1].to("cpu")
        for row, i in zip(hidden, index.tolist(), strict=True):
            length = int(table.lengths[i])
            if self.backbone.maps:
                rows[i] = self._store(row)
            elif self._one_token(cut):
                at = 0 if self.backbone.pools == "first" else length - 1
                rows[i] = self._store(row[at : at + 1])
            else:
                rows[i] = self._store(row[:length])

    def _store(self, value: Tensor) -> Tensor | int:
        size = value.numel() * value.element_size()
        if self.used + size <= self.memory:
            self.used += size
            return value.clone()
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="weft-prefix-")  # noqa: SIM115 - goes when the cache goes
        offset = self._file.seek(0, 2)
        self._file.write(len(value).to_bytes(8, "little") + value.contiguous().view(torch.uint8).numpy().tobytes())
        self._file.flush()
        return offset

    def _read(self, stored: Tensor | int, trailing: tuple[int, ...]) -> Tensor:
        if isinstance(stored, Tensor):
            return stored
        assert self._file is not None
        tokens = int.from_bytes(os.pread(self._file.fileno(), 8, stored), "little")
        size = tokens * math.prod(trailing) * self.backbone.dtype.itemsize
        data = bytearray(os.pread(self._file.fileno(), size, stored + 8))
        return torch.frombuffer(data, dtype=self.backbone.dtype).view(tokens, *trailing)
