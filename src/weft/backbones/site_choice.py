"""Which linear sites of a backbone a setting names: by role, by the end of a name, or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from weft.backbones.model_site import Site
from weft.backbones.options import LINEAR_ROLES
from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

GROUPS = {
    "attention": ("q", "k", "v", "o"),
    "ffn": ("ffn.in", "ffn.gate", "ffn.out"),
    "all": LINEAR_ROLES,
}

PARTS = ("text", "encoder", "decoder", "cross")
"""What a role may be narrowed to: ``cross.q``."""


def chosen(backbone: Backbone, spec: str, blocks: Iterable[int] | None = None) -> list[Site]:
    """Linear sites named by ``spec``: roles and groups joined by commas (``q,v``, ``attention``, ``all``), or module-name
    endings as PEFT takes them (``names:query,value``; those outside of the blocks, the head's too, go by their whole names),
    or a regular expression that is all of a module's name (``re:.*layer.[0-3].*query``). ``blocks`` keeps only those blocks.
    ``text.`` before a role or group means the text tower of a backbone with two; ``encoder.``, ``decoder.`` or ``cross.``
    that part of an encoder-decoder, which is meant as a whole otherwise.

    Raises:
        UserError: an unknown role, or no layer that is meant by one of them.
    """
    keep = None if blocks is None else set(blocks)
    inside = [s for s in backbone.linears + backbone.text_linears if keep is None or s.block in keep or s.tower]
    if spec.startswith("names:"):
        ends = [e.strip() for e in spec[6:].split(",") if e.strip()]
        exact = set(ends)
        named = [s for s in inside if s.name in exact or any(s.name.endswith("." + e) for e in ends)]
        if keep is None:
            named += [s for s in (*backbone.outer, *backbone.heads) if s.name in exact and s.role != "head.norm"]
        if not named:
            backbone.check_linears()
            have = sorted({s.name.rsplit(".", 1)[-1] for s in backbone.linears + backbone.text_linears})
            raise UserError(f'no linear layer of "{backbone.name}" ends in {", ".join(ends)}; it has {", ".join(have)}.')
        return named
    backbone.check_linears()
    if spec.startswith("re:"):
        return _matching(backbone, spec.removeprefix("re:"), inside)
    found: set[str] = set()
    for word in (w.strip() for w in spec.split(",")):
        part, _, rest = word.partition(".")
        where, plain = (part, rest) if part in PARTS else ("", word)
        if plain not in GROUPS and plain not in LINEAR_ROLES:
            choices = [*GROUPS, *LINEAR_ROLES]
            known, near = ", ".join(choices), nearest(plain, choices)
            raise UserError(f'unknown site "{word}": use {known}, names:ENDING or re:PATTERN.{near}')
        roles = set(GROUPS.get(plain, (plain,)))
        own = {s.name for s in inside if roles & set(s.roles) and where in ((s.tower,) if s.tower else ("", s.stack))}
        if not own:
            backbone.check_blocks()
            raise UserError(f'backbone "{backbone.name}" has no site "{word}"; try --set method.sites=all.')
        found |= own
    return [s for s in inside if s.name in found]


def _matching(backbone: Backbone, pattern: str, inside: list[Site]) -> list[Site]:
    try:
        found = [s for s in inside if re.fullmatch(pattern, s.name)]
    except re.error as e:
        raise UserError(f'"{pattern}" is no regular expression ({e}): give one, as in re:.*query.') from None
    if not found:
        first = next(iter(inside), None)
        example = "" if first is None else f", such as {first.name}"
        raise UserError(
            f'the regular expression "{pattern}" is the whole name of no linear layer of "{backbone.name}"{example}: begin it '
            "with .* if it is an ending."
        )
    return found
