"""The client axis on one frozen backbone: K clients' thin parts in one forward pass.

The backbone sees one ordinary batch of k·b rows, client-major. Only the parts know about clients: at each site a hook views the
rows as [k, n, d] and adds the parts' terms, batched over clients. Hooks are attached for the length of one forward pass and
always detached. Rows of a client that lacks a block skip that block; blocks below a cached prefix are skipped by everybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weft.adaptation.part import Part
from weft.errors import UserError, WeftError
from weft.tensors.forms import Value, pieces
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Site

Weight = float | Tensor  # a part's weight in a forward pass: a number, [k] per client or [k, b] per example


@dataclass(frozen=True)
class Placed:
    """One part at one site, with the names of its tensors."""

    part_name: str
    part: Part
    site: Site
    names: Mapping[str, str]  # role -> tensor name "part/site/role"
    fixed: Mapping[str, Tensor]  # constants [K] and start values [1, …]


@dataclass
class RowOwners:
    """Which clients the rows in flight belong to: [k] indices into the pack (None = all K in order), k and b."""

    clients: Tensor | None
    k: int
    use: Mapping[str, Weight] | None


class Weave:
    """Parts of K clients on a backbone.

    Args:
        tensors: name -> [K, …] (live values, changed in place by optimizers).
        placed: every part at every site, as made by :func:`place`.
    """

    def __init__(self, backbone: Backbone, placed: list[Placed], tensors: Mapping[str, Tensor], clients: int):
        self.backbone = backbone
        self.tensors = tensors
        self.clients = clients
        self.hold: Tensor | None = None  # [K, L] bool: the blocks that a client has
        self.prefix: tuple[int, Tensor] | None = None  # (blocks to skip, their output)
        self._by_module: dict[str, list[Placed]] = defaultdict(list)
        self.placed = placed
        self._texts: dict[frozenset[str], Tensor] = {}
        for p in placed:
            if p.site.role != "values":  # sits nowhere: the method itself looks at it
                self._by_module[p.site.name].append(p)
        self._rows: RowOwners | None = None

    @contextmanager
    def attached(self, clients: Tensor | None, k: int, use: Mapping[str, Weight] | None) -> Iterator[None]:
        """Hooks on, for rows that belong to ``k`` clients (``clients``: their indices, None = all)."""
        if self._rows is not None:
            raise WeftError("a forward pass was started inside another one on the same pack")
        self._rows = RowOwners(clients, k, use)
        handles: list[Any] = []
        patched: list[tuple[nn.Module, Any]] = []

        def patch(module: nn.Module, forward: Callable[..., Any]) -> None:
            patched.append((module, vars(module).get("forward")))
            module.forward = forward

        apart: set[int | None] = set()
        after: dict[str, Callable[..., Any]] = {}  # of whole blocks: inside the gate, as rows may skip them
        entering: dict[str, list[Placed]] = {}  # outside the gate: all rows get as many tokens
        try:
            for name, here in self._by_module.items():
                module = self.backbone.module(name)
                on = [p for p in here if p.part.always or self._weight(p.part_name) is not None]
                if not on:
                    continue
                adding = [p for p in on if p.part.mode == "adds"]
                entering[name] = [p for p in on if p.part.mode == "enters"]
                if any(p.part.mode == "replaces" for p in on):
                    patch(module, self._replacing(module, on))
                elif any(p.part.mode == "embeds" for p in on):
                    patch(module, self._embedding(module, module.forward, on))
                elif adding and name in self.backbone.blocks:
                    after[name] = self._adding(adding)
                elif adding:
                    handles.append(module.register_forward_hook(self._adding(adding)))
                if k > 1:
                    apart |= {p.site.block for p in on if not p.site.per_row}
            if apart and self.backbone.chained_blocks:
                raise UserError(
                    f'backbone "{self.backbone.name}" shares tables between its rows and between its blocks, so that its clients '
                    "can't be trained together: use --pack 1."
                )
            for index, name in enumerate(self.backbone.blocks):
                module = self.backbone.module(name)
                if name in after:
                    patch(module, _then(module, module.forward, after[name]))
                if self.hold is not None or self.prefix is not None or index in apart:
                    patch(module, self._gated(module.forward, index, index in apart))
                if entering.get(name):
                    patch(module, self._entering(module, module.forward, entering[name]))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, before in reversed(patched):
                if before is None:
                    del module.forward
                else:
                    module.forward = before
            self._rows = None

    def inputs(self, inputs: dict[str, Tensor], k: int, use: Mapping[str, Weight] | None) -> dict[str, Any]:
        """What the model takes beside the rows of a batch, once for each client if a part in the text tower is on."""
        texts = {p.part_name: p.part for p in self.placed if p.site.tower == "text" and (use is None or p.part_name in use)}
        if not texts or self.backbone.names is None:
            return inputs | self.backbone.class_inputs()
        key = frozenset(texts)
        if key not in self._texts:  # the same in every step
            ids = {"input_ids": self.backbone.names.ids()}
            for part in texts.values():
                ids = part.inputs(self.backbone, ids)
            self._texts[key] = ids["input_ids"].to(self.backbone.device)
        rows = self._texts[key]
        return inputs | {"input_ids": rows.repeat(k, 1), "classes": len(rows)}

    # values of the clients in the rows ----------------------------------------------------------------------------

    def _weight(self, part: str) -> Weight | None:
        """The part's weight in this pass; None = off."""
        assert self._rows is not None
        use = self._rows.use
        return 1.0 if use is None else use.get(part)

    def _pick(self, value: Tensor) -> Tensor:
        assert self._rows is not None
        clients = self._rows.clients
        if value.shape[0] != self.clients:  # no client axis: a start value [1, …]
            return value
        if clients is None:
            return value
        if value.stride(0) == 0:
            return value[:1].expand(len(clients), *value.shape[1:])
        return value.index_select(0, clients)

    def _values(self, p: Placed) -> dict[str, Tensor]:
        found = {role: self._pick(self.tensors[name]) for role, name in p.names.items()}
        return found | {name: self._pick(value) for name, value in p.fixed.items()}

    def _terms(self, here: list[Placed], module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """Σ weight · part over the parts of one site, [k, n, d]."""
        total = None
        for p in here:
            term = p.part.apply(module, self._values(p), x, out)
            weight = 1.0 if p.part.always else self._weight(p.part_name)
            assert weight is not None  # a part that is off has no hook
            if isinstance(weight, Tensor):
                per_row = term.shape[1] // weight.shape[1] if weight.dim() == 2 else term.shape[1]
                spread = weight.repeat_interleave(per_row, 1) if weight.dim() == 2 else weight.unsqueeze(1)
                term = term * spread.unsqueeze(-1).to(term.dtype)
            elif weight != 1.0:
                term = term * weight
            total = term if total is None else total + term
        assert total is not None
        return total

    # hooks ----------------------------------------------------------------------------------------------------------

    def _adding(self, here: list[Placed]) -> Callable[..., Any]:
        before_norm = [p for p in here if p.site.role == "ffn.norm"]
        after = [p for p in here if p.site.role != "ffn.norm"]

        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            assert self._rows is not None
            out = result[0] if isinstance(result, tuple) else result
            k = self._rows.k
            x = args[0] if args else out
            flat = out.reshape(k, -1, out.shape[-1])
            if before_norm:  # LN(s + A(z)) with s = the norm's input and z = its output
                terms = self._terms(before_norm, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = module.forward(x + terms.expand_as(flat).reshape(x.shape))
                flat = out.reshape(k, -1, out.shape[-1])
            if after:
                terms = self._terms(after, module, x.reshape(k, -1, x.shape[-1]), flat)
                out = out + terms.expand_as(flat).reshape(out.shape)
            return (out, *result[1:]) if isinstance(result, tuple) else out

        return hook

    def _replacing(self, module: nn.Module, here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            assert self._rows is not None
            flat = x.reshape(self._rows.k, -1, x.shape[-1])
            out = self._terms(here, module, flat, flat)
            return out.reshape(*x.shape[:-1], out.shape[-1])

        return forward

    def _embedding(self, module: nn.Module, frozen: Callable[[Tensor], Tensor], here: list[Placed]) -> Callable[[Tensor], Tensor]:
        def forward(ids: Tensor) -> Tensor:
            assert self._rows is not None
            k, out = self._rows.k, frozen(ids.clamp(min=0))
            out = out.view(k, -1, *out.shape[1:])
            for p in here:
                out = p.part.apply(module, self._values(p), ids.view(k, -1, *ids.shape[1:]), out)
            return out.flatten(0, 1)

        return forward

    def _entering(self, module: nn.Module, block: Callable[..., Any], here: list[Placed]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._rows is not None
            hidden = _hidden(args, kwargs)
            hidden = hidden.view(self._rows.k, -1, *hidden.shape[1:])
            for p in here:
                hidden = p.part.apply(module, self._values(p), hidden, hidden)
            hidden = hidden.flatten(0, 1)
            return block(hidden, *args[1:], **kwargs) if args else block(**kwargs | {"hidden_states": hidden})

        return forward

    def _gated(self, block: Callable[..., Any], index: int, apart: bool) -> Callable[..., Any]:
        """A block that starts from a cached prefix, and skips the rows of clients that lack it.

        Args:
            apart: run it client by client, because it uses a part on something that has no rows (a table of positions).
        """

        def wrap(hidden: Tensor) -> Any:
            size = self.backbone.tuple_blocks
            return (hidden, *[None] * (size - 1)) if size else hidden

        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self._rows is not None
            if self.prefix is not None:
                cut, cached = self.prefix
                if index < cut:  # nothing above reads it but the head of a model whose blocks are all skipped
                    return wrap(cached if index == cut - 1 == len(self.backbone.blocks) - 1 else _hidden(args, kwargs))
                if index == cut:
                    args, kwargs = ((cached, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": cached})
            rows, out = self._rows, _hidden(args, kwargs)
            has = torch.ones(rows.k, dtype=torch.bool) if self.hold is None else self.hold[self._clients(), index].cpu()
            if bool(has.all()) and not apart:
                return block(*args, **kwargs)
            for group in torch.eye(rows.k, dtype=torch.bool)[has] if apart else has.unsqueeze(0)[has.any().unsqueeze(0)]:
                out = self._among(block, group, out, args, kwargs)
            return wrap(out)

        return forward

    def _clients(self) -> Tensor:
        assert self._rows is not None
        return torch.arange(self.clients) if self._rows.clients is None else self._rows.clients.cpu()

    def _among(self, block: Callable[..., Any], group: Tensor, out: Tensor, args: Any, kwargs: Any) -> Tensor:
        """``out`` with the rows of the clients in ``group`` ([k] bool) replaced by what the block makes of them."""
        assert self._rows is not None
        rows, n = self._rows, out.shape[0]
        keep = group.repeat_interleave(n // rows.k).nonzero().squeeze(1).to(out.device)
        use = rows.use
        if use is not None:
            use = {p: w[group.to(w.device)] if isinstance(w, Tensor) else w for p, w in use.items()}
        names = self.backbone.row_arguments
        self._rows = RowOwners(self._clients()[group].to(out.device), int(group.sum()), use)
        try:
            result = block(*_take(args, keep, n, names), **_take(kwargs, keep, n, names))
        finally:
            self._rows = rows
        part = result[0] if isinstance(result, tuple) else result
        return out.index_copy(0, keep, part.to(out.dtype))


def _then(module: nn.Module, block: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: hook(module, args, block(*args, **kwargs))


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _take(value: Any, keep: Tensor, n: int, names: Collection[str], path: str = "") -> Any:
    """The rows ``keep`` of the block's arguments that have entries per row; what is common to all rows stays whole."""
    if isinstance(value, Tensor):
        if path not in names or not value.dim() or value.shape[0] % n:
            return value
        return value.unflatten(0, (n, -1)).index_select(0, keep.to(value.device)).flatten(0, 1)
    if isinstance(value, tuple):
        return tuple(_take(v, keep, n, names, f"{path}.{i}" if path else str(i)) for i, v in enumerate(value))
    if isinstance(value, dict):
        return {k: _take(v, keep, n, names, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    return value


def place(backbone: Backbone, parts: list[Mapping[str, Part]], device: torch.device, dtype: torch.dtype) -> list[Placed]:
    """The parts of K clients (one mapping each, same names and sites, possibly other ranks) as one list of placed parts."""
    found = []
    first = parts[0]
    for name, part in first.items():
        others = [p[name] for p in parts]
        sites = part.sites(backbone)
        for site in sites:
            inits = part.tensors(backbone, site)
            names: dict[str, str] = {}
            fixed: dict[str, Tensor] = {}
            for role, init in inits.items():
                full = f"{name}/{site.name}/{role}"
                if init.kind == "lowrank":
                    names |= {f"{role}.A": full + ".A", f"{role}.B": full + ".B"}
                else:
                    names[role] = full
                if init.kind == "value" and init.value is not None:
                    fixed[f"{role}.start"] = init.value.unsqueeze(0).to(device)
                elif init.kind == "zeros" and len(init.shape) == 1:
                    fixed[f"{role}.start"] = torch.zeros(1, *init.shape, device=device)
            for constant in part.constants(site):
                values = [o.constants(site)[constant] for o in others]
                fixed[constant] = torch.tensor(values, device=device, dtype=dtype)
            found.append(Placed(name, part, site, names, fixed))
    return found


def stack(values: Sequence[Value | None], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """K clients' values as tensors [K, …] by role, zero-padded to the largest; an absent value (None) is all zeros.

    One and the same object for all clients becomes a view without copies. A LowRank gives A [K, R, d_in] and B [K, d_out, R]
    with its scale in B; a tensor has the role ``""``.
    """
    whole = {id(v): pieces(_unscaled(v)) for v in values if v is not None}  # by id: what is one object stays one
    roles = next(iter(whole.values()))
    return {r: _stacked([None if v is None else whole[id(v)][r] for v in values], device, dtype) for r in roles}


def _unscaled(value: Value) -> Value:
    return LowRank(value.B * value.scale, value.A) if isinstance(value, LowRank) else value


def _stacked(values: list[Tensor | None], device: torch.device, dtype: torch.dtype) -> Tensor:
    present = next(v for v in values if v is not None)
    if all(v is present for v in values):
        one = present.to(device, dtype)
        return one.unsqueeze(0).expand(len(values), *one.shape)
    shape = [max(v.shape[i] for v in values if v is not None) for i in range(present.dim())]
    out = torch.zeros(len(values), *shape, device=device, dtype=dtype)
    for row, v in zip(out, values, strict=True):
        if v is not None:
            row[tuple(slice(0, s) for s in v.shape)] = v.to(device, dtype)
    return out
