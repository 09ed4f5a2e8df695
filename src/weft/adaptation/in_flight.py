"""A forward pass in flight: whose rows it is of, and which values of which parts these rows see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.adaptation.attachments import Parameter
from weft.adaptation.norm_statistics import Moments
from weft.adaptation.part import Part
from weft.adaptation.placed import Placed
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
        statistics: by module, what a batch norm has gone by. entered: by module, what it was called with, of those whose input
            parts elsewhere in their block read; it goes once they have.
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
    entered: dict[str, Tensor] = field(default_factory=dict)
    own: Tensor | None = None


class InFlight:
    """What the hooks of a pass ask: its rows' values of parts, and what parts make of them.

    Attributes:
        backbone: they sit on. placed: every part at every site. clients: how many there are. insert: block -> tokens
            [k, b, n, d] that enter it behind the first.
    """

    backbone: Backbone
    placed: list[Placed]
    clients: int
    insert: Mapping[int, Tensor]
    _pass: Pass | None
    _noted: list[Noted] | None
    _measuring: bool

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

    def _entered(self, p: Placed, out: Tensor) -> Tensor:
        """What entered the module that a part reads in the place of its own, [k, n, d]."""
        assert self._pass is not None
        found = self._pass.entered[p.site.reads].to(out.device)
        return found.reshape(self._pass.k, -1, found.shape[-1])

    def _terms(self, here: list[Placed], module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """Σ weight · part over the parts of one site, [k, n, d]."""
        total = None
        for p in here:
            w = self._values(p, out.device)
            if p.part.whole_rows:
                w["own"] = self._own(p, out)
            term = p.part.apply(module, w, self._entered(p, out) if p.site.reads else x, out)
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
            value = self._pick(self._pass.tensors[name])
            if len(value) > 1:
                raise WeftError(
                    f'"{p.part_name}" holds whole weights, and a pass takes those of one client alone: make packs of one'
                )
            value = value.squeeze(0)
            if isinstance(weight, Tensor) or weight != 1.0:
                start = frozen.to(value)
                value = start + weight * (value - start)
            value = value.to(frozen)
            yield from (Parameter(module, own, value) for module, own in places)
