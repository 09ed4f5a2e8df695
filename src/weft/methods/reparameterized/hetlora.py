"""HetLoRA: every client has a rank of its own, prunes it where its training leaves the last ranks behind, and counts by its norm.

Y. J. Cho, L. Liu, Z. Xu, A. Fahrezi, G. Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
EMNLP 2024, arXiv 2401.06432.

The server holds A [R, d_in] and B [d_out, R]; client k has their first r_k ranks. With t = ⌊γ r_k⌋ and the tail
T = Σ over layers ‖B[:, t:]‖ ‖A[t:]‖:

    B_k, A_k ← local steps on  loss + λ T        from the first r_k ranks
    r_k ← max(t, r_min)                          if T is smaller than before them
    p_k ← ‖B_k A_k‖ / Σ_j ‖B_j A_j‖              over all layers: the root of the sum of squares
    B ← Σ_k p_k [B_k 0],  A ← Σ_k p_k [A_k; 0]   zeros in the place of what a client lacks

Ranks that few clients hold are thinned by the others' zeros, as in the paper; one that no client of a round holds is 0 from then
on, and can learn nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Pack,
    Positive,
    ServerState,
    Task,
    Update,
    UserError,
    Value,
    dealt,
)

FLOOR = 1e-30
"""The least weight: where no client has moved anything, all count alike."""


class HetLoRA(Method):
    """Defaults of the paper; λ as in the code of FlexLoRA's authors, the optimizer as in LoRA-A²'s comparison.

    Attributes:
        rank: R, of the server. least: r_min, below which nobody prunes.
        alpha: the scale is α/R for everybody.
        gamma: share of its ranks that a client keeps when it prunes; 1 = nobody prunes. decay: λ, of the tail.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="hetlora",
        title="A rank for each client, pruned as it trains, and a mean by norms",
        paper="Cho et al., EMNLP 2024",
        arxiv="2401.06432",
        family="reparameterized",
        challenges=("computational heterogeneity", "data heterogeneity"),
        evidence="reconstructed",
        deviations=(
            "Of the paper the abstract and a figure were read, the rest of two re-implementations. A client decides once for all "
            "its layers, from the sum of their tails. The head is averaged by the same weights as the factors."
        ),
        asks=("rank",),
        renews=("rank",),
        reveals=("rank",),
        derives=("rank",),
        needs=("factors",),
        sends="both LoRA factors at its rank, after pruning, that rank, and the head",
    )
    demands: ClassVar[tuple[str, ...]] = ("lora",)
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    rank: Count = 50
    least: Count = 5
    alpha: Positive = 50.0
    gamma: Annotated[float, Gt(0), Le(1)] = 0.99
    decay: NonNegative = 1e-3
    sites: str = "q,v"
    steps: Count | None = 5
    batch: Count = 8
    optim: Optim = Optim("adamw", lr=5e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.rank:
            raise UserError(f"method.least is {self.least}, above method.rank = {self.rank}: choose a smaller one.")

    @property
    def sums(self) -> bool:
        return False

    def profile(self, position: int) -> dict[str, Any]:
        return {"rank": self.least + dealt(position, [1.0] * (self.rank - self.least + 1))}

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank = self.rank_of(client)
        lora = LoRA(rank, self.alpha * rank / self.rank, self.sites, of=self.rank)
        return {"lora": (lora, SHARED), "head": (task.head, SHARED)}

    def rank_of(self, client: ClientInfo) -> int:
        """
        Raises:
            UserError: it is none that the server's is cut to.
        """
        rank = client.facts.get("rank", self.rank)
        if type(rank) is not int or not 1 <= rank <= self.rank:
            raise UserError(f"client {client.id} has the rank {rank}: give it one from 1 to method.rank = {self.rank}.")
        return rank

    def kept(self, rank: int) -> int:
        """t = ⌊γ r⌋: the tail begins there."""
        return math.floor(self.gamma * rank + 1e-9)  # 0.29 · 100 is less than 29 in floating point

    # client -------------------------------------------------------------------------------------------------------------

    def tails(self, pack: Pack) -> Tensor:
        """T of each client, [K]."""
        first = torch.tensor([self.kept(self.rank_of(c)) for c in pack.clients], device=pack.device)
        total = torch.zeros(len(first), dtype=pack.dtype, device=pack.device)
        for name, a in pack.params("lora/*/A").items():
            b = pack.tensors[name[:-1] + "B"]
            tail = torch.arange(a.shape[1], device=pack.device) >= first[:, None]  # [K, r]; what pads a client is 0
            rows, columns = a * tail.unsqueeze(2), b * tail.unsqueeze(1)
            total = total + torch.linalg.vector_norm(rows, dim=(1, 2)) * torch.linalg.vector_norm(columns, dim=(1, 2))
        return total

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        return super().objective(pack, batch) + self.decay * batch.of(self.tails(pack))

    def train(self, pack: Pack) -> Iterable[Update]:
        with torch.no_grad():
            before = self.tails(pack)
        updates = list(self.fit(pack))
        with torch.no_grad():
            pruned = dict(zip((c.id for c in pack.clients), (self.tails(pack) < before).tolist(), strict=True))
        for update in updates:
            held = self.rank_of(update.client)
            rank = max(self.kept(held), min(self.least, held)) if pruned[update.client.id] else held
            cut: dict[str, Value] = {n: _resized(n, v, rank) for n, v in update.tensors.items()}
            yield replace(update, tensors=cut, facts={"rank": rank})

    # server -------------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> dict[str, tuple[int | None, ...]]:
        shapes: dict[str, tuple[int | None, ...]] = {}
        for site in server.sites("lora"):
            shapes |= {f"lora/{site.name}/A": (None, site.d_in), f"lora/{site.name}/B": (site.d_out, None)}
        return shapes

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(self._whole(server, updates), weight=lambda update: update.weight)

    def _whole(self, server: ServerState, updates: Iterable[Update]) -> Iterator[Update]:
        """Updates at the server's rank, weighted by their norms; one whose ranks cannot be its own counts for nothing."""
        for update in updates:
            rank, held = update.facts.get("rank"), self.rank_of(update.client)
            if type(rank) is not int or rank not in (held, max(self.kept(held), min(self.least, held))):
                continue
            if any(_ranks(n, v) != rank for n, v in update.tensors.items() if n.startswith("lora/")):
                continue
            server.renew(update.client.id, rank=rank)
            norm = math.hypot(*(update.lowrank("lora", site).norm() for site in server.sites("lora")))
            whole: dict[str, Value] = {n: _resized(n, v, self.rank) for n, v in update.tensors.items()}
            yield replace(update, tensors=whole, weight=max(norm, FLOOR))


def _ranks(name: str, value: Value) -> int:
    return value.shape[0] if name.endswith("/A") else value.shape[-1]


def _resized(name: str, value: Value, rank: int) -> Value:
    """A factor's first ranks, or zeros behind them; a tensor of another part as it is."""
    if not name.startswith("lora/") or not isinstance(value, Tensor):
        return value
    more = rank - _ranks(name, value)
    return F.pad(value, (0, 0, 0, more) if name.endswith("/A") else (0, more))
