"""Seeded start values: a tensor described by shape, distribution and name, drawn the same wherever it is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from weft.tensors.keyed import generator


@dataclass(frozen=True)
class Init:
    """Start value of one tensor, without client axis.

    Attributes:
        shape: the tensor's shape.
        kind: ``zeros``, ``ones``, ``normal`` (std = ``scale``), ``uniform`` (on ±``scale``), ``share`` (uniform from 0 to
            ``scale``), ``value`` (``value`` itself), ``orthogonal``: the rows of a matrix, or its columns if they are fewer, are
            those of a random orthogonal matrix, times ``scale``; or ``places``: rows and columns [2, n] of n different entries of
            a matrix of the shape ``of``, each set of n as likely.
            ``odd`` [r, n] and ``even`` [n, r]: standard normal mixtures, times ``scale``, of the odd and the even rows of one
            random orthogonal matrix [r, r], r even, that tensors of one place ("part/site") share: even @ odd = 0.
        scale: see ``kind``.
        value: the start value for kind ``value``, e.g. a pretrained bias.
        within: shape of a larger tensor of which this is the leading slice: start values of any slice agree with the whole's.
        of: see ``kind``.
        like: the part as which it is drawn; tensors of one site and role that are drawn as one part begin alike. "" = its own.
    """

    shape: tuple[int, ...]
    kind: str = "zeros"
    scale: float = 1.0
    value: Tensor | None = field(default=None, hash=False)
    within: tuple[int, ...] | None = None
    of: tuple[int, int] | None = None
    like: str = ""

    def __eq__(self, other: object) -> bool:
        """Values are compared number by number: parts that have start values among their fields are compared."""
        if not isinstance(other, Init):
            return NotImplemented
        if any(getattr(self, f.name) != getattr(other, f.name) for f in fields(self) if f.name != "value"):
            return False
        mine, theirs = self.value, other.value
        return mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))

    def called(self, name: str) -> str:
        """The name under which the tensor "part/site/role" has its start value."""
        return f"{self.like}/{name.split('/', 1)[1]}" if self.like else name

    def draw(self, seed: int, *name: object) -> Tensor:
        """The float32 start value on the CPU; random kinds depend on ``(seed, *name)`` alone, see ``like``."""
        if self.within is not None and self.within != self.shape:
            return leading(replace(self, shape=self.within, within=None).draw(seed, *name), self.shape).clone()
        if self.kind == "zeros":
            return torch.zeros(self.shape)
        if self.kind == "ones":
            return torch.ones(self.shape)
        if self.kind == "value":
            assert self.value is not None and tuple(self.value.shape) == self.shape
            return self.value.detach().to("cpu", torch.float32).clone()
        if self.like:
            name = (self.called(str(name[0])), *name[1:])
        g = generator(seed, "start", *name)
        if self.kind == "normal":
            return torch.randn(self.shape, generator=g) * self.scale
        if self.kind == "uniform":
            return (torch.rand(self.shape, generator=g) * 2 - 1) * self.scale
        if self.kind == "share":
            return torch.rand(self.shape, generator=g) * self.scale
        if self.kind == "orthogonal":
            return self._orthogonal(g)
        if self.kind in ("odd", "even"):
            return self._mixture(seed, name, g)
        if self.kind == "places":
            assert self.of is not None
            return _places(self.shape[1], self.of, g).to(torch.float32)  # exact: no side of a matrix is near 2^24
        raise ValueError(f"unknown start value kind {self.kind!r}")

    def _orthogonal(self, g: torch.Generator) -> Tensor:
        rows, columns = self.shape
        square = torch.randn(max(self.shape), min(self.shape), generator=g, dtype=torch.float64)
        q = torch.linalg.qr(square)[0] * self.scale
        return (q.mT if rows < columns else q).to(torch.float32).contiguous()

    def _mixture(self, seed: int, name: tuple[object, ...], own: torch.Generator) -> Tensor:
        first = self.kind == "odd"
        rank, n = self.shape if first else self.shape[::-1]
        place = [part.rpartition("/")[0] if isinstance(part, str) and "/" in part else part for part in name]
        square = torch.randn(rank, rank, generator=generator(seed, "orthogonal", *place), dtype=torch.float64)
        rows = torch.linalg.qr(square)[0][0 if first else 1 :: 2]
        mixture = torch.randn(n, rank // 2, generator=own, dtype=torch.float64) @ rows * self.scale
        return (mixture.mT if first else mixture).to(torch.float32).contiguous()

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def drawn_like(part: str, tensors: Mapping[str, Init]) -> dict[str, Init]:
    """Role -> tensor, all drawn as those of another part; by their own name, if it is ""."""
    return {role: replace(init, like=part) for role, init in tensors.items()}


def _places(n: int, of: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Rows and columns [2, n] of n different entries of a matrix, in the order in which it lies in memory."""
    total = of[0] * of[1]
    few = min(n, total - n)  # it is these that are drawn, or the others
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < few:
        found = torch.cat([found, torch.randint(total, (few - len(found),), generator=generator)]).unique()
    if few < n:
        others = torch.ones(total, dtype=torch.bool)
        others[found] = False
        found = others.nonzero().flatten()
    return torch.stack([found // of[1], found % of[1]])


def leading(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The leading slice of a tensor; itself, if it has the shape.

    Raises:
        ValueError: it is smaller somewhere.
    """
    if tuple(value.shape) == tuple(shape):
        return value
    if value.dim() != len(shape) or any(have < need for have, need in zip(value.shape, shape, strict=True)):
        raise ValueError(f"a tensor of {tuple(value.shape)} has no leading slice of {tuple(shape)}")
    return value[tuple(slice(0, n) for n in shape)]
