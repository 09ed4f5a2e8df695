"""The client axis on one frozen backbone: K clients' thin parts in one forward pass.

The backbone sees one ordinary batch of k·b rows, client-major. Only the parts know about clients: at each site a hook views the
rows as [k, n, d] and adds the parts' terms, batched over clients. Hooks are attached for the length of one forward pass and
always detached. Rows of a client that lacks a block skip that block; blocks below a cached prefix are skipped by everybody. A
block that is computed once more in the backward pass gets its hooks back for as long as that takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weft.adaptation.attachments import Attachment, Attachments, Parameter
from weft.adaptation.block_arguments import inserting
from weft.adaptation.block_hooks import BlockHooks
from weft.adaptation.in_flight import Noted, Pass, Weight
from weft.adaptation.module_hooks import ModuleHooks
from weft.adaptation.own_tokens import OwnTokens
from weft.adaptation.placed import Placed
from weft.adaptation.prefix_tuning import prefixed
from weft.errors import UserError, WeftError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


class Weave(ModuleHooks, BlockHooks):
    """Parts of K clients on a backbone.

    Args:
        tensors: name -> [K, …] (live values, changed in place by optimizers).
        placed: every part at every site, as made by :func:`weft.adaptation.placed.place`.
        recompute: of a block nothing is kept for the backward pass but what goes into it: the block is computed once more there.
    """

    def __init__(
        self,
        backbone: Backbone,
        placed: list[Placed],
        tensors: Mapping[str, Tensor],
        clients: int,
        recompute: bool = False,
    ):
        self.backbone = backbone
        self.recompute = recompute
        self.tensors = tensors
        self.clients = clients
        self.hold: Tensor | None = None  # [K, L] bool: the blocks that a client has
        self.prefix: tuple[int, Tensor] | None = None  # (blocks to skip, their output)
        self.kept: dict[int, Tensor | None] = {}  # block -> what leaves it, of the blocks that are asked for
        self.insert: Mapping[int, Tensor] = {}  # block -> tokens [k, b, n, d] that enter it behind the first
        self._by_module: dict[str, list[Placed]] = defaultdict(list)
        self.placed = placed
        self.own_tokens = OwnTokens(backbone, placed)
        for p in placed:
            if p.site.role != "values":  # sits nowhere: the method itself looks at it
                self._by_module[p.site.name].append(p)
        self._pass: Pass | None = None
        self._noted: list[Noted] | None = None
        self._measuring = False

    def of(self, clients: Tensor, tensors: Mapping[str, Tensor]) -> Weave:
        """The same parts for clients [K'] of these, some of them several times, with values of their own.

        Args:
            tensors: name -> [K', …].
        """

        def picked(value: Tensor) -> Tensor:
            return value.index_select(0, clients) if value.shape[0] == self.clients else value

        placed = [
            replace(p, fixed={r: picked(v) for r, v in p.fixed.items()}, has=None if p.has is None else picked(p.has))
            for p in self.placed
        ]
        found = Weave(self.backbone, placed, tensors, len(clients), self.recompute)
        found.hold = None if self.hold is None else self.hold.index_select(0, clients.to(self.hold.device))
        return found

    @property
    def whole_rows(self) -> bool:
        """Whether some part looks at rows as wholes."""
        return any(p.part.whole_rows for p in self.placed)

    @contextmanager
    def noting(self, measuring: bool = False) -> Iterator[list[Noted]]:
        """What batch norms see in passes of training inside.

        Args:
            measuring: all passes inside are as in training, so far as batch norms go.
        """
        before = self._noted, self._measuring
        noted: list[Noted] = []
        self._noted, self._measuring = noted, measuring
        try:
            yield noted
        finally:
            self._noted, self._measuring = before

    @contextmanager
    def attached(
        self,
        clients: Tensor | None,
        k: int,
        use: Mapping[str, Weight] | None,
        keys: Tensor | None = None,
        valid: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Iterator[None]:
        """Hooks on, for rows that belong to ``k`` clients (``clients``: their indices, None = all).

        Args:
            keys: [k, b] of the rows, in a step of training. valid: [k, b] bool, those that are no padding; None = all.
            own: their tokens, for parts that look at whole rows.
        """
        if self._pass is not None:
            raise WeftError("a forward pass was started inside another one on the same pack")
        self._pass = Pass(clients, k, use, dict(self.tensors), self.hold, self.prefix, keys, valid, own=own)
        on = Attachments()
        standing: list[Parameter] = []
        apart: set[int | None] = set()
        inside: dict[int | None, list[Attachment]] = defaultdict(list)  # by block
        after: dict[str, Callable[..., Any]] = {}  # of whole blocks: inside the gate, as rows may skip them
        entering: dict[str, list[Placed]] = {}  # outside the gate: all rows get as many tokens
        try:
            self._check_whole_rows()
            for name, here in self._by_module.items():
                module = self.backbone.module(name)
                working = [p for p in here if self._works(p.part, p.part_name)]
                working = [p for p in working if p.part.mode == "reads"] or working
                if not working:
                    continue
                self._check_weights(working)
                standing += [one for p in working if p.part.mode == "parameters" for one in self._standing(p)]
                adding = [p for p in working if p.part.mode == "adds"]
                entering[name] = [p for p in working if p.part.mode == "enters"]
                prefixing = [p for p in working if p.part.mode == "prefixes"]
                found = None
                if any(p.part.mode in ("replaces", "reads") for p in working):
                    found = Attachment(module, self._replacing(module, working), instead=True)
                elif any(p.part.mode == "embeds" for p in working):
                    found = Attachment(module, self._embedding(module, module.forward, working), instead=True)
                elif adding and name in self.backbone.blocks:
                    after[name] = self._adding(adding)
                elif adding:
                    found = Attachment(module, self._adding(adding))
                some = [] if found is None else [found]
                if prefixing:
                    some.append(Attachment(module, prefixed(module, module.forward, self._prefixing(prefixing)), instead=True))
                some += [Attachment(module, self._normalising(module, p), True) for p in working if p.part.mode == "normalises"]
                heard = {p.site.reads for p in adding if p.site.reads}
                some += [Attachment(self.backbone.module(other), self._hearing(other)) for other in sorted(heard)]
                for one in some:
                    on.put(one)
                    site = working[0].site
                    inside[None if site.tower else site.block].append(one)
                if k > 1:
                    apart |= {p.site.block for p in working if not p.site.per_row}
            if apart and self.backbone.chained_blocks:
                raise UserError(
                    f'backbone "{self.backbone.name}" shares tables between its rows and between its blocks, so that its clients '
                    "can't be trained together: use --pack 1."
                )
            for value in standing:
                on.put(value)
            for index, name in enumerate(self.backbone.blocks):
                module = self.backbone.module(name)
                if name in after:
                    on.put(Attachment(module, _then(module, module.forward, after[name]), instead=True))
                if index in self.insert:  # inside the gate, which begins with what is cached
                    on.put(Attachment(module, inserting(module.forward, self.insert[index].flatten(0, 1)), instead=True))
                if self.hold is not None or self.prefix is not None or index in apart:
                    on.put(Attachment(module, self._gated(module.forward, index, index in apart), instead=True))
                if self.recompute and torch.is_grad_enabled():
                    on.put(Attachment(module, self._recomputed(module.forward, index, [*standing, *inside[index]]), instead=True))
                if entering.get(name):
                    on.put(Attachment(module, self._entering(module, module.forward, entering[name]), instead=True))
                if index in self.kept:
                    on.put(Attachment(module, self._keeping(module.forward, index), instead=True))
            yield
        finally:
            on.off()
            self._pass = None


def _then(module: nn.Module, block: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: hook(module, args, block(*args, **kwargs))
