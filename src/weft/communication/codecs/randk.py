"""Entries at random places, which a number in the message names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch import Tensor

from weft.communication.codecs.arrived import Entry
from weft.communication.codecs.chain import Sparsifier
from weft.communication.codecs.known import register
from weft.tensors.keyed import generator as keyed


@register
@dataclass(frozen=True)
class RandK(Sparsifier):
    """k entries of each tensor at places drawn from a seed in the message's header, times n/k on arrival; others are zero.

    Unbiased: E‖C(x) - x‖² = (n/k - 1) ‖x‖². k = max(1, round(share · n)).

    Bytes: what k entries take in the stages behind it, k · itemsize without any; the places take none.

    Source: random masks of Konečný et al. 2016, arXiv 1610.05492, section 3; ω as in Stich, Cordonnier, Jaggi 2018,
    arXiv 1809.07599, and DIANA (arXiv 1901.09269).

    Attributes:
        share: of a tensor's entries. common: the places are the same for all clients of a round. Then what they send can be
            added up without being decoded, while their errors do not average out.
    """

    name: ClassVar[str] = "randk"
    source: ClassVar[str] = "Konečný et al. 2016, arXiv 1610.05492"
    fair: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    share: Annotated[float, Gt(0), Le(1)] = 0.1
    common: bool = False

    @property
    def adds(self) -> bool:  # type: ignore[override]
        return self.common

    def kept(self, n: int) -> int:
        return min(max(round(self.share * n), 1), n)

    def gain(self, n: int) -> float:
        return n / self.kept(n)

    def variance(self, n: int) -> float:
        return n / self.kept(n) - 1 if n else 0.0

    def share_of_norm(self, n: int) -> float:
        return 0.0  # before a quantiser that is biased, n/k times what it makes of the entries may be anywhere

    def seed(self, generator: torch.Generator | None, common: torch.Generator | None) -> int | None:
        stream = common if self.common else generator
        if stream is None:
            raise ValueError(f"randk draws places and needs a generator{', common to the round' if self.common else ''}")
        return int(torch.randint(2**62, (), generator=stream))

    def choose(self, x: Tensor, seed: int | None, name: str) -> Tensor:
        return self._places(len(x), seed, name)

    def read(self, entry: Entry, seed: int | None) -> Tensor:
        return self._places(entry.n, seed, entry.name)

    def _places(self, n: int, seed: int | None, name: str) -> Tensor:
        assert seed is not None
        return torch.randperm(n, generator=keyed(seed, "places", name))[: self.kept(n)].sort().values
