"""pFedLoRA: clients with models of their own share nothing but a small low-rank adapter beside the head, trained by turns.

L. Yi, H. Yu, G. Wang, X. Liu, X. Li, "pFedLoRA: Model-Heterogeneous Personalized Federated Learning with LoRA Tuning", arXiv
2310.13283.

In each round, with θ what it received and ω all of its own:

    ω ← steps along (1 - μ) L(f(ω)) + μ L(f(ω) + θ)       θ stands still
    θ ← steps along L(f(ω) + θ)                           ω stands still; θ goes up
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    BesideHead,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Share,
    Task,
    Update,
    UserError,
)

OWN, COMMON = ("mine", "head", "theta/*/P"), ("theta/*/U", "theta/*/V")


class PFedLoRA(Method):
    """Settings of works by the same authors, whose code was read, where the paper's own was not.

    Attributes:
        width, common_rank: of the common adapter; every client has a connector of its own from its features to that width.
        rank, alpha: of the own LoRA, which stands for the own model.
        mu: μ.
        loss: of the first phase: ``mixture`` as above; ``joint``: that with the adapter alone; ``sum``: both, of weight 1.
        sites: linear layers that get the own LoRA, see ``Backbone.sites``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pfedlora",
        title="Different models, one small adapter beside their heads",
        paper="Yi et al., arXiv 2023",
        arxiv="2310.13283",
        family="reparameterized",
        challenges=("data heterogeneity", "computational heterogeneity"),
        evidence="reconstructed",
        deviations=(
            "A client's own model is a LoRA and a head on its frozen backbone; the paper trains small networks whole. Losses and "
            "settings are those of works by the same authors. Both phases have as many epochs."
        ),
        views=("personal", "with adapter"),
        needs=("head",),
        sends="the adapter beside its head, and the number of examples",
    )

    width: Count = 64
    common_rank: Count = 16
    rank: Count = 8
    alpha: Positive = 16.0
    mu: Share = 0.5
    loss: Literal["mixture", "joint", "sum"] = "mixture"
    sites: str = "q,v"
    epochs: Positive = 10.0
    batch: Count = 512
    optim: Optim = Optim("sgd", lr=0.01, weight_decay=1e-3, clip=50.0, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if not backbone.heads:
            raise UserError(f'backbone "{backbone.name}" has no head to put an adapter beside: choose another --model.')
        theta = BesideHead(self.width, self.common_rank, len(task.classes))
        return {
            "theta": (theta, {"P": PERSONAL, "V": SHARED, "U": SHARED}),
            "mine": (LoRA(self.rank, self.alpha, self.sites), PERSONAL),
            "head": (task.head, PERSONAL),
        }

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"mine": 1.0} if view == "personal" else {"mine": 1.0, "theta": 1.0})

    def own_loss(self, pack: Pack, batch: Batch) -> Tensor:
        joint = self.objective(pack, batch)
        if self.loss == "joint":
            return joint
        alone = pack.loss(self.forward(pack, batch, "personal"), batch)
        return alone + joint if self.loss == "sum" else (1 - self.mu) * alone + self.mu * joint

    def train(self, pack: Pack) -> Iterable[Update]:
        pack.minimise(self.own_loss, OWN, self.optim, self.epochs, self.steps, self.batch)
        return self.fit(pack, COMMON)
