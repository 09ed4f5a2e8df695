"""Whether clients can share a pack: the same parts at the same layers, with tensors of the same names and uses."""

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
    """Sizes of tensors (ranks) and constants may differ between clients, and nothing else.

    Raises:
        UserError: one client's parts differ from the first one's, of whose parts the pack is made.
    """
    first = turns[0]
    for turn in turns[1:]:
        what = _difference(backbone, first.client.id, first.adaptation, turn.client.id, turn.adaptation)
        if what:
            raise UserError(
                f"clients that are trained together need the same parts at the same layers, but {what}: train them one by one "
                "with --pack 1."
            )


def _difference(backbone: Backbone, one: str, mine: Adaptation, two: str, theirs: Adaptation) -> str | None:
    """The first difference, as a clause."""
    if odd := sorted(mine.keys() ^ theirs.keys()):
        return f'only {one if odd[0] in mine else two} has a part "{odd[0]}"'
    for name, (part, _) in mine.items():
        other = theirs[name][0]
        if type(part) is not type(other):
            return f'the part "{name}" is a {type(part).__name__} for {one} and a {type(other).__name__} for {two}'
        here, there = ({s.name: s for s in p.sites(backbone)} for p in (part, other))
        if sites := [s for s in (*here, *there) if s not in here or s not in there]:
            return f'only {one if sites[0] in here else two} has the part "{name}" at {sites[0]}'
        if any(s.tower == "text" for s in here.values()) and part != other:  # all clients' texts are those of the first part
            return f'the part "{name}" has other settings for {one} than for {two}'
    left, right = ({n: (init, scope) for n, init, scope in named(a, backbone)} for a in (mine, theirs))
    if odd := [n for n in (*left, *right) if n not in left or n not in right]:
        return f'only {one if odd[0] in left else two} has a tensor "{odd[0]}"'
    for tensor, (init, scope) in left.items():
        twin, use = right[tensor]
        if scope != use:
            return f'the tensor "{tensor}" is {scope.word} for {one} and {use.word} for {two}'
        if not _one_form(init, twin):
            return f'the tensor "{tensor}" has another form or start for {one} than for {two}'
    return None


def _one_form(a: Init, b: Init) -> bool:
    """Whether one tensor with a client axis can hold both, zero-padded, and what it is compared with is common to both."""
    if a.kind != b.kind or len(a.shape) != len(b.shape):
        return False
    if a.value is None or b.value is None:
        return a.value is b.value
    return a.value is b.value or torch.equal(a.value, b.value)
