"""Parts at their sites, and the values of K clients as tensors with a client axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.adaptation.part import Part
from weft.tensors.forms import Value, pieces
from weft.tensors.init import leading
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site


@dataclass(frozen=True)
class Placed:
    """One part at one site, with the names of its tensors.

    Attributes:
        has: [K] bool, the clients that have it there; None = all.
        elsewhere: role -> name of a tensor at another site of the part.
        alike: the constants of all clients are the same.
    """

    part_name: str
    part: Part
    site: Site
    names: Mapping[str, str]  # role -> tensor name "part/site/role"
    fixed: Mapping[str, Tensor]  # constants [K] and start values [1, …], or [K, …]
    has: Tensor | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    alike: bool = True

    @property
    def reads(self) -> dict[str, str]:
        """Role -> name of every tensor that reaches ``apply``."""
        return {**self.names, **self.elsewhere}


def place(backbone: Backbone, parts: list[Mapping[str, Part]], device: torch.device, dtype: torch.dtype) -> list[Placed]:
    """The parts of K clients (one mapping each, possibly at other sites or of other ranks) as one list of placed parts."""
    found: dict[tuple[str, str], tuple[Part, Site]] = {}
    held: list[set[tuple[str, str]]] = []
    for own in parts:
        at = {(name, site.name): (part, site) for name, part in own.items() for site in part.sites(backbone)}
        held.append(set(at))
        found = at | found  # the first client's stay
    order = {name: i for i, name in enumerate(dict.fromkeys(name for own in parts for name in own))}
    placed = []
    for name, where in sorted(found, key=lambda key: order[key[0]]):  # stable: sites as they come
        owners = [own.get(name) if (name, where) in at else None for own, at in zip(parts, held, strict=True)]
        placed.append(_placed(backbone, name, *found[name, where], owners, device, dtype))
    return placed


def _placed(
    backbone: Backbone,
    name: str,
    part: Part,
    site: Site,
    owners: Sequence[Part | None],
    device: torch.device,
    dtype: torch.dtype,
) -> Placed:
    """
    Args:
        owners: each client's own part; None = it has none there.
    """
    names: dict[str, str] = {}
    fixed: dict[str, Tensor] = {}
    for role, init in part.tensors(backbone, site).items():
        full = f"{name}/{site.called}/{role}"
        if init.kind == "lowrank":
            names |= {f"{role}.A": full + ".A", f"{role}.B": full + ".B"}
        else:
            names[role] = full
        if part.mode != "adds":  # what adds a term asks what it has changed by
            continue
        if init.kind == "value" and init.value is not None:
            fixed[f"{role}.start"] = _starts(backbone, role, part, site, owners).to(device)
        elif init.kind == "zeros" and len(init.shape) == 1:
            fixed[f"{role}.start"] = torch.zeros(1, *init.shape, device=device)
    alike = True
    for constant in part.constants(site):
        values = [0.0 if o is None else o.constants(site)[constant] for o in owners]
        alike = alike and len(set(values)) == 1
        fixed[constant] = torch.tensor(values, device=device, dtype=dtype)
    has = torch.tensor([o is not None for o in owners], device=device) if None in owners else None
    other = {role: f"{name}/{where}" for role, where in part.elsewhere(backbone, site).items()}
    return Placed(name, part, site, names, fixed, has, other, alike)


def _starts(backbone: Backbone, role: str, part: Part, site: Site, owners: Sequence[Part | None]) -> Tensor:
    """Start values [1, …] that all clients have, or [K, …] where they have slices of several sizes."""
    if all(own is None or own == part for own in owners):
        owners = [part]
    inits = [None if own is None else own.tensors(backbone, site)[role] for own in owners]
    values = [None if init is None or init.value is None else leading(init.value, init.shape) for init in inits]
    kind = next(v for v in values if v is not None)
    return _stacked(values, kind.device, kind.dtype)


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
