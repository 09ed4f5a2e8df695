"""The client axis on one frozen backbone: K clients' thin parts in one forward pass.

The backbone sees one ordinary batch of k·b rows, client-major. Only the parts know about clients: at each site a hook views the
rows as [k, n, d] and adds the parts' terms, batched over clients. Hooks are attached for the length of one forward pass and
always detached. Rows of a client that lacks a block skip that block; blocks below a cached prefix are skipped by everybody. A
block that is computed once more in the backward pass gets its hooks back for as long as that takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.adaptation.attachments import Attachment, Attachments, Parameter, put_on
from weft.adaptation.block_arguments import hidden_of, inserting, rows_of, with_hidden
from weft.adaptation.norm_statistics import Moments, Statistics, moments, normalised
from weft.adaptation.own_tokens import OwnTokens
from weft.adaptation.part import Part
from weft.adaptation.placed import Placed
from weft.adaptation.prefix_tuning import Pairs, prefixed
from weft.adaptation.row_tokens import spread
from weft.errors import UserError, WeftError
from weft.tensors.keyed import key

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

Weight = float | Tensor  # a part's weight in a forward pass: a number, [k] per client or [k, b] per example
Noted = tuple[Placed, Tensor | None, Moments]  # what a batch norm has seen of which clients (None = all)


@dataclass(frozen=True)
class Pass:
    """A forward pass in flight.

    Attributes:
        clients: whose its rows are: [k] indices into the pack (None = all K in order). use: weights of parts, None = all at 1.
        tensors, hold, prefix: those of the weave as it began.
        keys: [k, b] of its rows, for what is dropped of them; None = it is no pass of training.
        valid: [k, b] bool, its rows that are no padding; None = all.
        statistics: by module, what a batch norm has gone by.
        own: of :func:`weft.adaptation.row_tokens.row_tokens`; None = nobody can say.
    """

    clients: Tensor | None
    k: int
    use: Mapping[str, Weight] | None
    tensors: Mapping[str, Tensor]
    hold: Tensor | None
    prefix: tuple[int, Tensor] | None
    keys: Tensor | None = None
    valid: Tensor | None = None
    statistics: dict[str, Moments] = field(default_factory=dict)
    own: Tensor | None = None


class Weave:
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

    # values of the clients in the rows ----------------------------------------------------------------------------

    def _works(self, part: Part, name: str) -> bool:
        """Whether it takes part in this pass."""
        assert self._pass is not None
        if part.mode == "reads":
            return self._pass.use is not None and name in self._pass.use
        return part.always or self._weight(name) is not None

    def _weight(self, part: str) -> Weight | None:
        """The part's weight in this pass; None = off."""
        assert self._pass is not None
        use = self._pass.use
        return 1.0 if use is None else use.get(part)

    def _check_weights(self, working: list[Placed]) -> None:
        """
        Raises:
            WeftError: a part that is on or off was given another weight.
            UserError: rows were given weights of their own where the model computes something for all of them at once.
        """
        for p in working:
            weight = self._weight(p.part_name)
            if isinstance(weight, Tensor) and weight.dim() == 2 and not p.site.per_row:
                raise UserError(
                    f'backbone "{self.backbone.name}" computes {p.site.name} for all rows at once too, where they can have no '
                    "weights of their own: choose other sites, such as --set method.sites=v, or another --model."
                )
            weighed = p.part.always or p.part.mode in ("adds", "replaces", "parameters")
            if not weighed and (isinstance(weight, Tensor) or weight != 1.0):
                raise WeftError(f'the part "{p.part_name}" is on or off, and takes no weight')

    def _check_whole_rows(self) -> None:
        """
        Raises:
            UserError: a part looks at whole rows, and there are two kinds of these, or other tokens among theirs.
        """
        working = [p for p in self.placed if self._works(p.part, p.part_name)]
        whole = next((p.part_name for p in working if p.part.whole_rows), None)
        if whole is None:
            return
        if self.backbone.encoder_decoder:
            raise UserError(
                f'backbone "{self.backbone.name}" reads a row and writes another, and "{whole}" looks at whole rows of one kind: '
                "choose a --model with one stack of blocks."
            )
        others = [p.part_name for p in working if p.part.mode == "enters" or p.part.room(self.backbone)]
        if others or self.insert:
            who = f'"{others[0]}"' if others else "the method"
            raise UserError(f'"{whole}" looks at whole rows, and {who} puts tokens among theirs: leave one of the two out.')

    def _pick(self, value: Tensor) -> Tensor:
        assert self._pass is not None
        clients = self._pass.clients
        if value.shape[0] != self.clients:  # no client axis: a start value [1, …]
            return value
        if clients is None:
            return value
        if value.stride(0) == 0 and not value.requires_grad:  # each client's gradient has to come to its own row
            return value[:1].expand(len(clients), *value.shape[1:])
        return value.index_select(0, clients)

    def _values(self, p: Placed, device: torch.device) -> dict[str, Tensor]:
        """On the device of what they are used on: modules of a large model may lie on several."""
        assert self._pass is not None
        found = {role: self._pick(self._pass.tensors[name]).to(device) for role, name in p.reads.items()}
        if p.part.dropout and self._pass.keys is not None:
            found["keys"] = self._keys(p, self._pass.keys).to(device)
        if p.site.name in self._pass.statistics and p.part.mode == "adds":
            by = self._pass.statistics[p.site.name]
            found |= {"norm.mean": by.mean, "norm.var": by.var}
        return found | {name: self._pick(value).to(device) for name, value in p.fixed.items()}

    def _keys(self, p: Placed, rows: Tensor) -> Tensor:
        """Of the rows at one site of a part; [k, 1], of the clients, where the module sees something else than rows."""
        if not p.site.per_row or p.site.tower:
            rows = rows[:, :1]
        return rows ^ key(0, "site", p.part_name, p.site.called)

    def _own(self, p: Placed, out: Tensor) -> Tensor:
        """[k, b, T] the rows' own tokens in what a module makes of them, [k, n, d].

        Raises:
            WeftError: the pass is none of a batch's rows.
            UserError: the module sees something else than their tokens.
        """
        assert self._pass is not None
        if self._pass.own is None:
            raise WeftError(f'"{p.part_name}" looks at whole rows, and this pass does not tell which tokens are theirs')
        found = spread(self._pass.own.to(out.device), out.shape[1])
        if found is None:
            raise UserError(
                f'"{p.part_name}" looks at whole rows, and {p.site.name} of backbone "{self.backbone.name}" sees something else '
                "than their tokens: choose another --model, such as minilm."
            )
        return found

    def _terms(self, here: list[Placed], module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """Σ weight · part over the parts of one site, [k, n, d]."""
        total = None
        for p in here:
            w = self._values(p, out.device)
            if p.part.whole_rows:
                w["own"] = self._own(p, out)
            term = p.part.apply(module, w, x, out)
            weight = 1.0 if p.part.always else self._weight(p.part_name)
            assert weight is not None  # a part that is off has no hook
            if isinstance(weight, Tensor):
                per_row = term.shape[1] // weight.shape[1] if weight.dim() == 2 else term.shape[1]
                spread = weight.repeat_interleave(per_row, 1) if weight.dim() == 2 else weight.unsqueeze(1)
                term = term * spread.unsqueeze(-1).to(term)
            elif weight != 1.0:
                term = term * weight
            if p.has is not None:
                term = term.masked_fill(~self._pick(p.has).to(term.device).view(-1, 1, 1), 0.0)
            total = term if total is None else total + term
        assert total is not None
        return total

    def _standing(self, p: Placed) -> Iterator[Parameter]:
        """What stands in for parameters, wherever in the model they are; a gradient goes through the cast to their precision.

        At a weight other than 1 it lies on the line through the frozen value and the client's.
        """
        assert self._pass is not None
        if self._pass.k > 1:
            raise WeftError(f'"{p.part_name}" holds whole weights, and a pass takes those of one client alone: make packs of one')
        weight = self._weight(p.part_name)
        assert weight is not None  # a part that is off has nothing to put there
        if isinstance(weight, Tensor):
            if weight.numel() > 1:
                raise WeftError(f'"{p.part_name}" holds whole weights, which can\'t have a weight for each row')
            weight = weight.reshape(())
        for role, name in p.names.items():
            names = [n.rpartition(".") for n in self.backbone.own[p.site.parameter(role)]]
            places = [(self.backbone.module(module), own) for module, _, own in names]
            frozen = getattr(*places[0])
            value = self._pick(self._pass.tensors[name]).squeeze(0)
            if isinstance(weight, Tensor) or weight != 1.0:
                start = frozen.to(value)
                value = start + weight * (value - start)
            value = value.to(frozen)
            yield from (Parameter(module, own, value) for module, own in places)

    # hooks ----------------------------------------------------------------------------------------------------------

    def _adding(self, here: list[Placed]) -> Callable[..., Any]:
        before_norm = [p for p in here if p.site.role == "ffn.norm"]
        after = [p for p in here if p.site.role != "ffn.norm"]

        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            assert self._pass is not None
            out = result[0] if isinstance(result, tuple) else result
            k = self._pass.k
            x = args[0].to(out.device) if args else out
            maps = self._makes_maps(module, out)
            if maps:
                x, out = x.movedim(1, -1), out.movedim(1, -1)
            flat = out.reshape(k, -1, out.shape[-1])
            if before_norm:  # LN(s + A(z)) with s = the norm's input and z = its output
                terms = self._terms(before_norm, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = module.forward(x + terms.expand_as(flat).reshape(x.shape))
                flat = out.reshape(k, -1, out.shape[-1])
            if after:
                terms = self._terms(after, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = out + terms.expand_as(flat).reshape(out.shape)
            if maps:
                out = out.movedim(-1, 1)
            return (out, *result[1:]) if isinstance(result, tuple) else out

        return hook

    def _makes_maps(self, module: nn.Module, out: Tensor) -> bool:
        """Whether features lie before the places in what it makes."""
        if isinstance(module, (nn.Conv2d, _BatchNorm)):
            return out.dim() > 2
        return bool(self.backbone.maps) and any(module is self.backbone.module(name) for name in self.backbone.blocks)

    def _replacing(self, module: nn.Module, here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            assert self._pass is not None
            flat = x.reshape(self._pass.k, -1, x.shape[-1])
            out = self._terms(here, module, flat, flat)
            return out.reshape(*x.shape[:-1], out.shape[-1])

        return forward

    def _embedding(self, module: nn.Module, frozen: Callable[[Tensor], Tensor], here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(ids: Tensor) -> Tensor:
            assert self._pass is not None
            k, out = self._pass.k, frozen(ids.clamp(min=0))
            out = out.view(k, -1, *out.shape[1:])
            for p in here:
                out = p.part.apply(module, self._values(p, out.device), ids.view(k, -1, *ids.shape[1:]), out)
            return out.flatten(0, 1)

        return forward

    def _entering(self, module: nn.Module, block: Callable[..., Any], here: list[Placed]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._pass is not None
            hidden = hidden_of(args, kwargs)
            hidden = hidden.view(self._pass.k, -1, *hidden.shape[1:])
            for p in here:
                hidden = p.part.apply(module, self._values(p, hidden.device), hidden, hidden)
            args, kwargs = with_hidden(hidden.flatten(0, 1), args, kwargs)
            return block(*args, **kwargs)

        return forward

    def _normalising(self, module: nn.Module, p: Placed) -> Callable[[Tensor], Tensor]:
        """A batch norm that goes by the rows of each client in passes of training, and by what is held in others."""
        part = cast(Statistics, p.part)

        def forward(x: Tensor) -> Tensor:
            rows = self._pass
            assert rows is not None
            if rows.keys is None and not self._measuring:
                by = part.held(self._values(p, x.device))
                by = Moments(*(t.expand(rows.k, -1) for t in (by.mean, by.var)))
            else:
                by = moments(x, rows.k, rows.valid)
                if self._noted is not None:
                    self._noted.append((p, rows.clients, Moments(by.mean.detach(), by.var.detach(), by.count)))
            rows.statistics[p.site.name] = by
            return normalised(module, x, by)

        return forward

    def _prefixing(self, here: list[Placed]) -> Pairs:
        def pairs(key: Tensor) -> list[tuple[Tensor, Tensor | None]]:
            found = []
            for p in here:
                w = self._values(p, key.device)
                found.append((p.part.apply(self.backbone.module(p.site.name), w, key, key), None if p.alike else w["tokens"]))
            return found

        return pairs

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


def _then(module: nn.Module, block: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: hook(module, args, block(*args, **kwargs))
