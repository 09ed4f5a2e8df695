"""What becomes of whole blocks for the length of a pass: left out, begun from what is cached, run again, or listened to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.adaptation.attachments import Attachment, Parameter, put_on
from weft.adaptation.block_arguments import hidden_of, rows_of, with_hidden
from weft.adaptation.in_flight import InFlight
from weft.errors import WeftError


class BlockHooks(InFlight):
    """Forwards that stand in for a block's own.

    Attributes:
        kept: block -> what leaves it, of the blocks that are asked for.
    """

    kept: dict[int, Tensor | None]

    def _gated(self, block: Callable[..., Any], index: int, apart: bool) -> Callable[..., Any]:
        """A block that starts from a cached prefix, and skips the rows of clients that lack it.

        Args:
            apart: run it client by client, because it uses a part on something that has no rows (a table of positions).
        """

        def wrap(hidden: Tensor) -> Any:
            size = self.backbone.tuple_blocks
            return (hidden, *[None] * (size - 1)) if size else hidden

        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._pass is not None
            rows = self._pass
            if rows.prefix is not None:
                cut, cached = rows.prefix
                if index < cut:  # nothing above reads it but the head of a model whose blocks are all skipped
                    return wrap(cached if index == cut - 1 == len(self.backbone.blocks) - 1 else hidden_of(args, kwargs))
                if index == cut:
                    args, kwargs = with_hidden(cached, args, kwargs)
            out = hidden_of(args, kwargs)
            has = torch.ones(rows.k, dtype=torch.bool) if rows.hold is None else rows.hold[self._clients(), index].cpu()
            if bool(has.all()) and not apart:
                return block(*args, **kwargs)
            for group in torch.eye(rows.k, dtype=torch.bool)[has] if apart else has.unsqueeze(0)[has.any().unsqueeze(0)]:
                out = self._among(block, group, out, args, kwargs)
            return wrap(out)

        return forward

    def _recomputed(self, block: Callable[..., Any], index: int, inside: Sequence[Attachment | Parameter]) -> Callable[..., Any]:
        """A block that keeps what goes into it, and runs once more in the backward pass, with what was ``inside`` it."""
        from torch.utils.checkpoint import checkpoint  # takes seconds to import

        # parameters of any module: a block may look into another one (the table of positions of a T5)
        here = [p for p in self.placed if p.part.mode == "parameters" or (p.site.block == index and not p.site.tower)]
        names = [n for p in here for n in p.reads.values()]

        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = self._pass
            assert rows is not None
            tensors = {n: rows.tensors[n] for n in names if n in rows.tensors}
            versions = {n: t._version for n, t in tensors.items()}
            passed = False

            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal passed
                if not passed:
                    passed = True
                    return block(*args, **kwargs)
                if self._pass is not None:
                    raise WeftError("a backward pass was started inside a forward pass on the same pack")
                if changed := [n for n, t in tensors.items() if t._version != versions[n]]:
                    raise WeftError(f'"{changed[0]}" was changed between a pass and its backward pass')
                self._pass = rows
                try:
                    with put_on(inside):
                        return block(*args, **kwargs)
                finally:
                    self._pass = None

            return checkpoint(run, *args, use_reentrant=False, **kwargs)

        return forward

    def _keeping(self, block: Callable[..., Any], index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            result = block(*args, **kwargs)
            self.kept[index] = result[0] if isinstance(result, tuple) else result
            return result

        return forward

    def _clients(self) -> Tensor:
        assert self._pass is not None
        return torch.arange(self.clients) if self._pass.clients is None else self._pass.clients.cpu()

    def _among(self, block: Callable[..., Any], group: Tensor, out: Tensor, args: Any, kwargs: Any) -> Tensor:
        """``out`` with the rows of the clients in ``group`` ([k] bool) replaced by what the block makes of them."""
        assert self._pass is not None
        rows, n = self._pass, out.shape[0]
        keep = group.repeat_interleave(n // rows.k).nonzero().squeeze(1).to(out.device)
        use = rows.use
        if use is not None:
            use = {p: w[group.to(w.device)] if isinstance(w, Tensor) else w for p, w in use.items()}
        names = self.backbone.row_arguments
        keys, valid, own = (None if t is None else t[group.to(t.device)] for t in (rows.keys, rows.valid, rows.own))
        who = self._clients()[group].to(out.device)
        self._pass = replace(rows, clients=who, k=int(group.sum()), use=use, keys=keys, valid=valid, statistics={}, own=own)
        try:
            result = block(*rows_of(args, keep, n, names), **rows_of(kwargs, keep, n, names))
        finally:
            self._pass = rows
        part = result[0] if isinstance(result, tuple) else result
        return out.index_copy(0, keep, part.to(out))
