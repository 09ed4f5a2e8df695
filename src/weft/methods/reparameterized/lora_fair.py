"""LoRA-FAIR: the server turns the mean of the B factors, so that its product with the mean of A points to the mean of products.

J. Bian, L. Wang, L. Zhang, J. Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV
2025, arXiv 2411.14961.

    A ← Ā = Σ_k p_k A_k
    B ← B̄ + argmin over ΔB of  1 - cos(Σ_k p_k B_k A_k, (B̄ + ΔB) Ā) + λ ‖ΔB‖

Nothing of the size of a weight is formed, see :mod:`weft.aggregation.fair`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor

from weft.aggregation.fair import Target, corrected, ridge
from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Positive,
    ServerState,
    Task,
    Update,
)


class LoRAFAIR(Method):
    """Defaults of a later project whose code is derived from the authors', at the paper's rank and penalty.

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A.
        penalty: λ, of a change as large as B̄.
        solver: ``cosine``: the objective above; ``ridge``: least squares with a squared penalty, in closed form.
        sites: linear layers that get LoRA, see ``Backbone.sites``: the projection behind the attention, and the second layer of
            the feed-forward.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="lora-fair",
        title="A mean of B factors turned towards the mean of products",
        paper="Bian et al., ICCV 2025",
        arxiv="2411.14961",
        family="reparameterized",
        challenges=("server-side aggregation bias",),
        evidence="reconstructed",
        deviations=(
            "The penalty is of ΔB over the norm of B̄, and the solver is a proximal one that stops where nothing falls. The codes "
            "that could be read take a thousand steps of SGD on ΔB itself at 0.01, which makes a B that is still small many "
            "times as large. The cosine is of whole products, where one code takes the mean over columns."
        ),
        needs=("all updates", "factors"),
        sends="both LoRA factors of every site, the head, and the number of examples",
    )

    demands: ClassVar[tuple[str, ...]] = ("lora",)

    rank: Count = 16
    alpha: Positive = 32.0
    penalty: NonNegative = 0.01
    solver: Literal["cosine", "ridge"] = "cosine"
    sites: str = "o,ffn.out"
    epochs: Positive = 3.0
    batch: Count = 128
    optim: Optim = Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, clip=10.0, schedule="constant")

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"lora": (LoRA(self.rank, self.alpha, self.sites), SHARED), "head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)  # the mean of products needs all factors together
        if not received:
            return
        server.mean(received)
        weights = [server.weigh(u) for u in received]
        for site in server.sites("lora"):
            terms = [u.lowrank("lora", site) for u in received]
            a, b = (server.shared[f"lora/{site.name}/{role}"] for role in "AB")
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            target = Target.of([t.A for t in terms], [t.B for t in terms], weights, a)
            better = ridge(target, b, self.penalty) if self.solver == "ridge" else corrected(target, b, self.penalty)
            server.write(f"lora/{site.name}/B", better.to(b.dtype))
