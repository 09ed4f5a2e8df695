"""FlexLoRA: average the full-size products of clients with different ranks, give each the best cut at its own rank.

J. Bai, D. Chen, B. Qian, L. Yao, Y. Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv 2402.11505. Code: alibaba/FederatedScope, branch FlexLoRA.

ΔW̄ = Σ_k p_k (α/r_k) B_k A_k = U Σ Vᵀ; a client of rank r gets B = U_r Σ_r / (α/r) and A = V_rᵀ. The product is never built:
the factors are stacked, and two thin QRs with one small SVD give the same U, Σ, V.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from weft.aggregation.factors import redistribute, stack
from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    LowRank,
    Message,
    Method,
    MethodInfo,
    Optim,
    Positive,
    ServerState,
    Task,
    Update,
    dealt,
)

TYPES = ((8, 8), (30, 30), (30, 200), (200, 200))  # (attention rank, feed-forward rank) of resource types 1 to 4
Mix = Literal["none", "uniform", "heavy-tail-light", "heavy-tail-strong", "normal"]
MIXES: dict[Mix, tuple[float, ...] | None] = {  # share of each type
    "none": None,
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy-tail-light": (0.80, 0.05, 0.05, 0.10),
    "heavy-tail-strong": (0.05, 0.05, 0.10, 0.80),
    "normal": (0.057, 0.443, 0.443, 0.057),  # density of N(1.5, 0.7²) at 0, 1, 2, 3
}


class FlexLoRA(Method):
    """Settings of the code, but not those that its script has where nothing is said: SGD at 1e-6, and equal ranks whose factors
    are averaged one by one, which is not FlexLoRA. Here are its mix ``random``, the AdamW that it takes on top of FedIT, at a
    replication's 5e-4 (LoRA-A²).

    Attributes:
        rank: of every client with mix ``none`` (the homogeneous baseline), and of the server where nobody is asked.
        alpha: α, the same for all, so that a client's scale is α/r_k.
        mix: resource types dealt to the clients: ``uniform``, ``heavy-tail-light``, ``heavy-tail-strong``, ``normal`` or
            ``none``. In ``normal`` types 2 and 3 dominate as the paper says: the code's density, with the types in order of
            size (the code's own order makes it favour 3 and 4). A client's own facts ``rank`` and ``ffn_rank`` go first.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        optim: of the code on top of FedIT, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="flexlora",
        title="Averaged products, redistributed by truncated SVD",
        paper="Bai et al., NeurIPS 2024",
        arxiv="2402.11505",
        family="reparameterized",
        challenges=("computational heterogeneity", "data heterogeneity"),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head is trained and averaged too. The script, where nothing is said, takes SGD at "
            "1e-6, halved after round 15, and equal ranks, whose factors it averages one by one, as FedIT does: here it is "
            "AdamW, as in the script's variant on top of FedIT, at a replication's 5e-4, and clients of four types in equal "
            "shares. Clients do train at ranks of their own: the code defines that step, but never calls it. The shares of the "
            "mix `normal` are the code's density with the types in order of size, as the paper describes them; its figures for "
            "them were not read."
        ),
        asks=("rank", "ffn_rank"),
        needs=("all updates", "factors"),
        sends="both LoRA factors of every site at the client's rank, the head, and the number of examples",
    )

    demands: ClassVar[tuple[str, ...]] = ("lora",)

    rank: Count = 8
    alpha: Positive = 16.0
    mix: Mix = "uniform"
    sites: str = "all"
    epochs: Positive = 1.0
    batch: Count = 4
    optim: Optim = Optim("adamw", lr=5e-4, clip=1.0)

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank = int(client.facts.get("rank", self.rank))
        ffn = int(client.facts.get("ffn_rank", rank))
        return {"lora": (LoRA(rank, self.alpha, self.sites, ffn), SHARED), "head": (task.head, SHARED)}

    def profile(self, position: int) -> dict[str, Any]:
        shares = MIXES[self.mix]
        if shares is None:
            return {}
        kind = dealt(position, shares)
        return {"rank": TYPES[kind][0], "ffn_rank": TYPES[kind][1]}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = server.stale(client, only="head")
        lora = self.adapt(server.bench.backbone, server.bench.task, client)["lora"][0]
        assert isinstance(lora, LoRA)
        for site in server.sites("lora"):
            product = server.memo.get(f"product/{site.name}")
            if product is None:
                break  # nothing was averaged yet: everybody has the start values
            g = server.generator("padding", client.id, site.name)
            a, b = redistribute(product, lora.rank_at(site), lora.scale_at(site), g, svd=triplets(product))
            message.tensors |= {f"lora/{site.name}/A": a, f"lora/{site.name}/B": b}
        return message

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)  # an average over products of different ranks needs them together
        if not received:
            return
        weights = [server.weigh(u) for u in received]
        total = sum(weights)
        for site in server.sites("lora"):
            terms = [u.lowrank("lora", site) for u in received]
            u, s, vh = stack(terms, [weight / total for weight in weights]).svd()
            # rows one after another, as a checkpoint gives them back: sums round by how a matrix lies in memory
            b, a = (u * s).contiguous(), vh.contiguous()
            server.memo[f"product/{site.name}"] = LowRank(b, a)
            scale = server.adaptation["lora"][0].constants(site)["scale"]
            server.write(f"lora/{site.name}/A", a)  # the global model is the whole average, not a cut
            server.write(f"lora/{site.name}/B", b / scale)
        server.mean(received, only="head")


def triplets(product: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, Vᵀ of a product U S Vᵀ that is kept as U S and Vᵀ: one decomposition serves all clients."""
    s = torch.linalg.vector_norm(product.B, dim=0)
    return product.B / s.clamp(min=torch.finfo(s.dtype).tiny), s, product.A
