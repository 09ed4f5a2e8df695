"""What a client trains: parts, what becomes of each of their tensors between rounds, and the names of those tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weft.adaptation.part import Part
from weft.federation.scope import Scope

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.tensors.init import Init

Adaptation = Mapping[str, tuple[Part, "Scope | Mapping[str, Scope]"]]
"""Part name -> (part, its scope; or a scope per tensor role). Tensors are then called "part/site/role"."""


def named(adaptation: Adaptation, backbone: Backbone) -> Iterator[tuple[str, Init, Scope]]:
    """(tensor name, start value, scope) of everything in an adaptation."""
    for part_name, (part, scope) in adaptation.items():
        for site in part.sites(backbone):
            for role, init in part.tensors(backbone, site).items():
                yield f"{part_name}/{site.called}/{role}", init, scope[role] if isinstance(scope, Mapping) else scope


def scope_of(adaptation: Adaptation, name: str) -> Scope:
    """The scope of the tensor "part/site/role"."""
    _, scope = adaptation[name.split("/", 1)[0]]
    return scope[name.rsplit("/", 1)[1]] if isinstance(scope, Mapping) else scope
