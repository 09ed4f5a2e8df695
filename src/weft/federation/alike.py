"""Whether clients can share a pack: what two of them both have is of one kind and has tensors of the same names and uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from weft.errors import UserError
from weft.federation.layout import Adaptation, named
from weft.federation.turn import Turn
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


def check_alike(backbone: Backbone, turns: Sequence[Turn]) -> None:
    """Sizes of tensors (ranks) and constants may differ between clients, and which parts that add something they have where,
    or that make a share of what a layer gives and are switched on and off.

    Raises:
        UserError: clients differ in more.
    """
    seen: dict[str, str] = {}  # adaptations are few, clients many
    for turn in turns:
        seen.setdefault(repr(turn.adaptation), turn.client.id)
    distinct = [t for t in turns if seen[repr(t.adaptation)] == t.client.id]
    for i, turn in enumerate(distinct):
        for other in distinct[:i]:
            what = _difference(backbone, other.client.id, other.adaptation, turn.client.id, turn.adaptation)
            if what:
                raise UserError(
                    f"clients that are trained together need parts of one kind at their layers, but {what}: train them one by "
                    "one with --pack 1."
                )


def _difference(backbone: Backbone, one: str, mine: Adaptation, two: str, theirs: Adaptation) -> str | None:
    """The first difference, as a clause."""
    for name in sorted(mine.keys() ^ theirs.keys()):
        who, adaptation = (one, mine) if name in mine else (two, theirs)
        part = adaptation[name][0]
        if part.mode not in ("adds", "reads") and not (part.mode == "replaces" and not part.always):
            return f'only {who} has a part "{name}"'
    for name in mine.keys() & theirs.keys():
        part, other = mine[name][0], theirs[name][0]
        if type(part) is not type(other):
            return f'the part "{name}" is a {type(part).__name__} for {one} and a {type(other).__name__} for {two}'
        here, there = ({s.name: s for s in p.sites(backbone)} for p in (part, other))
        sites = [s for s in (*here, *there) if s not in here or s not in there]
        if sites and part.mode != "adds":
            return f'only {one if sites[0] in here else two} has the part "{name}" at {sites[0]}'
        if any(s.tower == "text" for s in here.values()) and part != other:  # all clients' texts are those of the first part
            return f'the part "{name}" has other settings for {one} than for {two}'
        for site in (here[s] for s in here if s in there):
            if odd := sorted(part.tensors(backbone, site).keys() ^ other.tensors(backbone, site).keys()):
                who = one if odd[0] in part.tensors(backbone, site) else two
                return f'only {who} has a tensor "{name}/{site.name}/{odd[0]}"'
    left, right = ({n: (init, scope) for n, init, scope in named(a, backbone)} for a in (mine, theirs))
    for tensor in (n for n in left if n in right):
        (init, scope), (twin, use) = left[tensor], right[tensor]
        if scope != use:
            return f'the tensor "{tensor}" is {scope.word} for {one} and {use.word} for {two}'
        if not _one_form(init, twin):
            return f'the tensor "{tensor}" has another form or start for {one} than for {two}'
    return None


def _one_form(a: Init, b: Init) -> bool:
    """Whether one tensor with a client axis can hold both, zero-padded, and what it is compared with is common to both."""
    if a.kind != b.kind or len(a.shape) != len(b.shape) or (a.kind == "places" and a != b):
        return False
    if a.value is None or b.value is None:
        return a.value is b.value
    return a.value is b.value or torch.equal(a.value, b.value)
