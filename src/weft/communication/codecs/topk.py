"""The largest entries, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor

from weft.communication.codecs import bits
from weft.communication.codecs.arrived import Entry
from weft.communication.codecs.chain import Sparsifier
from weft.communication.codecs.known import register


@register
@dataclass(frozen=True)
class TopK(Sparsifier):
    """The k entries of largest magnitude of each tensor, the first of equal ones, in the order of their places; others are zero.

    Deterministic and biased: ‖C(x) - x‖² ≤ (1 - k/n) ‖x‖². k = max(1, round(share · n)).

    Bytes: what k entries take in the stages behind it, k · itemsize without any, and the places as numbers or as a bit each,
    whichever is less: min(⌈k ⌈log2 n⌉ / 8⌉, ⌈n / 8⌉); none for k = n.

    Source: Aji and Heafield 2017, arXiv 1704.05021; δ in Stich, Cordonnier, Jaggi 2018, arXiv 1809.07599. Both add what was left
    out to the next message (error feedback), which this does not.

    Attributes:
        share: of a tensor's entries.
    """

    name: ClassVar[str] = "topk"
    source: ClassVar[str] = "Aji and Heafield 2017, arXiv 1704.05021"
    sides: ClassVar[tuple[str, ...]] = ("at",)

    share: Annotated[float, Gt(0), Le(1)] = 0.01

    def kept(self, n: int) -> int:
        return min(max(round(self.share * n), 1), n)

    def share_of_norm(self, n: int) -> float:
        return self.kept(n) / n if n else 1.0

    def choose(self, x: Tensor, seed: int | None, name: str) -> Tensor:
        order = torch.sort(x.abs(), descending=True, stable=True).indices
        return order[: self.kept(len(x))].sort().values

    def written(self, places: Tensor, n: int) -> dict[str, Tensor]:
        if _as_bits(len(places), n):
            mask = torch.zeros(n, dtype=torch.bool)
            mask[places] = True
            return {"at": torch.from_numpy(bits.pack(mask.numpy(), 1))}
        return {"at": torch.from_numpy(bits.pack(places.numpy(), bits.width(n)))}

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        k = self.kept(n)
        wanted = bits.size(n, 1) if _as_bits(k, n) else bits.size(k, bits.width(n))
        if sides["at"].dtype != torch.uint8 or tuple(sides["at"].shape) != (wanted,):
            raise ValueError(f"has not the {wanted} bytes that the places of {k} among {n} entries take")

    def read(self, entry: Entry, seed: int | None) -> Tensor:
        k, n, raw = entry.kept, entry.n, entry.sides["at"].numpy()
        places = np.flatnonzero(bits.unpack(raw, n, 1)) if _as_bits(k, n) else bits.unpack(raw, k, bits.width(n))
        if len(places) != k or places[-1] >= n or (np.diff(places) <= 0).any():
            raise ValueError(f"tensor {entry.name!r} has places that are not {k} different ones in their order")
        return torch.from_numpy(places)


def _as_bits(k: int, n: int) -> bool:
    return bits.size(n, 1) <= bits.size(k, bits.width(n))
