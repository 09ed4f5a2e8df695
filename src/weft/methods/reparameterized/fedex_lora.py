"""FedEx-LoRA: factors are averaged, and what their average makes wrong of the mean update goes onto the frozen weights.

R. Singhal, K. Ponkshe, P. Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models", ACL 2025, arXiv 2410.09432. Code: RaghavSinghal10/fedex-lora.

    A ← Ā = Σ_k p_k A_k,  B ← B̄ = Σ_k p_k B_k
    W0 ← W0 + α/r · (Σ_k p_k B_k A_k - B̄ Ā)

so that W0 + α/r · B A is what it was, plus the mean of the clients' updates. The residual is Σ_k p_k (B_k - B̄)(A_k - Ā), of rank
(K - 1) r at most for K clients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from weft.aggregation.factors import aggregation_bias
from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    Delta,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Positive,
    ServerState,
    Task,
    Update,
    Weighting,
    Whole,
)


class FedExLoRA(Method):
    """Defaults of the paper's runs on GLUE.

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A.
        keep: rank to which the residual is cut, the paper's variant for narrow bands; 0 = it goes down whole.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        weighting: ``uniform`` as in paper and code, or by ``examples``; the same for factors and products.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedex-lora",
        title="Averaged factors, and their error on the frozen weights",
        paper="Singhal et al., ACL 2025",
        arxiv="2410.09432",
        family="reparameterized",
        challenges=("server-side aggregation bias",),
        deviations=(
            "Residuals stay beside the weights instead of being added to them, and go down with orthonormal factors, in which no "
            "client's own can be seen. The code adds a residual the wrong way round to square layers; here it is as in the paper."
        ),
        needs=("all updates", "factors"),
        sends="both LoRA factors of every site, the head, and the number of examples",
    )

    demands: ClassVar[tuple[str, ...]] = ("lora",)

    rank: Count = 4
    alpha: Positive = 8.0
    keep: Whole = 0
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    epochs: Positive = 3.0
    batch: Count = 128
    optim: Optim = Optim("adamw", lr=1e-3, weight_decay=0.01, warmup=0.06)

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {
            "base": (Delta(self.sites), GIVEN),
            "lora": (LoRA(self.rank, self.alpha, self.sites), SHARED),
            "head": (task.head, SHARED),
        }

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)  # the residual needs all factors together
        if not received:
            return
        weights = [server.weigh(u) for u in received]
        whole = (len(received) - 1) * self.rank
        for site in server.sites("lora"):
            terms = [u.lowrank("lora", site) for u in received]
            bias = aggregation_bias([t.A for t in terms], [t.B for t in terms], weights) * -terms[0].scale
            if rank := min(self.keep or whole, whole):
                server.grow(f"base/{site.name}/delta", bias.truncate(rank))
        server.mean(received)
