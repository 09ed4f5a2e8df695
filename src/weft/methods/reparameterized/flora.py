"""FLoRA: stack the clients' LoRA factors instead of averaging them, add the stack to the base, start afresh.

Z. Wang, Z. Shen, Y. He, G. Sun, H. Wang, L. Lyu, A. Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
Low-Rank Adaptations", NeurIPS 2024, arXiv 2409.05976. Code: ATP-1010/FederatedLLM.

Every round a client begins with new factors (A random, B = 0) of its own rank on a base that holds all earlier updates. The
server concatenates: ΔW = Σ_k p_k s_k B_k A_k, exactly, with p_k on one factor only. Everybody downloads the stacks that it has
not got, Σ_k r_k (d_in + d_out) numbers per site and round, or all of the base's change where that is less: at most
min(d_in, d_out)·(d_in + d_out), however many rounds there were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from weft.aggregation.factors import stack
from weft.contract import (
    GIVEN,
    SENT,
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
)


class FLoRA(Method):
    """Defaults of the code, with one local epoch as in the commands of its README; left out there, that argument is 3.

    Attributes:
        rank: of every client. ranks: different ranks dealt to the clients in turn, the paper's heterogeneous setting being
            (64, 32, 16, 16, 8, 8, 4, 4, 4, 4); a client's own fact ``rank`` goes first.
        scale: s = α/r, the same at any rank (α = 2r).
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        optim: of the code, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="flora",
        title="Stacking of LoRA factors, exact for any mix of ranks",
        paper="Wang et al., NeurIPS 2024",
        arxiv="2409.05976",
        family="reparameterized",
        challenges=("computational heterogeneity", "server-side aggregation bias"),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head is averaged because stacking does not cover it. Stacks stay beside the weights "
            "instead of being merged into them. A round is one local epoch as in the commands of the code's README, whose "
            "script takes three if nothing is said."
        ),
        asks=("rank",),
        needs=("all updates", "factors"),
        sends="both LoRA factors of every site, which every other client gets to see, the head, and the number of examples",
    )

    demands: ClassVar[tuple[str, ...]] = ("lora",)

    rank: Count = 16
    ranks: tuple[Count, ...] = ()
    scale: Positive = 2.0
    sites: str = "q,v"
    epochs: Positive = 1.0
    batch: Count = 128
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank = int(client.facts.get("rank", self.rank))
        return {
            "base": (Delta(self.sites), GIVEN),
            "lora": (LoRA(rank, self.scale * rank, self.sites), SENT),
            "head": (task.head, SHARED),
        }

    def profile(self, position: int) -> dict[str, Any]:
        return {"rank": self.ranks[position % len(self.ranks)]} if self.ranks else {}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)  # stacking needs them together
        if not received:
            return
        weights = [server.weigh(u) for u in received]
        total = sum(weights)
        for site in server.sites("lora"):
            terms = [u.lowrank("lora", site) for u in received]
            server.grow(f"base/{site.name}/delta", stack(terms, [weight / total for weight in weights]))
        server.mean(received, only="head")
