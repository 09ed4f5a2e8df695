"""What all packs of a run train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.federation.message import ClientInfo
from weft.privacy.hiding import Privacy
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.prefix import PrefixCache
    from weft.backbones.run_table import Table
    from weft.federation.arrivals import Arrivals
    from weft.tasks.task import Task


@dataclass
class Bench:
    """What every pack of a run shares.

    Attributes:
        table: all rows of the run, as the backbone reads them. prefix: cache of frozen lower layers, or None.
        by_length: length-aware batches. others: benches of clients with another backbone, by its name; their tables hold the
            same rows in the same order. recompute: see :class:`weft.adaptation.weave.Weave`.
        sequence_packing: rows of a decoder share lines, see :mod:`weft.backbones.lines`.
        arrivals: which rows arrive when; None = all are there from the beginning.
        privacy: what rows and clients are hidden by.
    """

    backbone: Backbone
    task: Task
    table: Table
    seed: int
    prefix: PrefixCache | None = None
    by_length: bool = True
    others: Mapping[str, Bench] = field(default_factory=dict)
    recompute: bool = False
    sequence_packing: bool = False
    arrivals: Arrivals | None = None
    privacy: Privacy = Privacy()

    def under(self, privacy: Privacy) -> Bench:
        """The same, where rows and clients are hidden by this."""
        return replace(self, privacy=privacy, others={n: replace(b, privacy=privacy) for n, b in self.others.items()})

    def of(self, client: ClientInfo) -> Bench:
        """The bench with the client's backbone."""
        return self.others.get(client.model, self)

    @property
    def dtype(self) -> torch.dtype:
        """Of trainable parts, reductions and server algebra: float32, or float64 with a float64 backbone."""
        return torch.float64 if self.backbone.dtype == torch.float64 else torch.float32

    def draw(self, init: Init, *key: object) -> Tensor:
        """A start value from the run's seed."""
        return init.draw(self.seed, *key).to(self.dtype)

    def begin(self, init: Init, name: str, start: Mapping[str, Tensor]) -> Tensor:
        """The start value of the tensor "part/site/role": handed out in set-up (``start``), or drawn."""
        handed = start.get(init.called(name))
        return self.draw(init, name) if handed is None else handed
