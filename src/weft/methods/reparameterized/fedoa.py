"""FedOA: beside the averaged LoRA every client trains one of its own, whose features stay near those of the averaged one.

Y. Yang, G. Long, Q. Lu, L. Zhu, J. Jiang, C. Zhang, "Federated Low-Rank Adaptation for Foundation Models' Out-of-Distribution
Generalization" (FedOA), arXiv 2505.01075. Code: Lydia-yang/FedOA.

In round t ≥ 1, with g what it received:

    p ← steps along L(W0 + p) + λ ‖H_p - H_g‖       over a batch's features [b, d], the norm not squared; g stands still
    g ← steps along L(W0 + g)                       which is what goes up

The two are never at work together. In round 0 there is no p yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
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
    Output,
    Pack,
    Positive,
    Task,
    Update,
    Weighting,
)


class FedOA(Method):
    """Defaults of the code.

    Attributes:
        rank, alpha: of both LoRAs; the update is (α/r)·B A.
        pull: λ.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        weighting: ``uniform`` as in the code, or by ``examples``.
        batch: rows of a step. The distance grows with their number, as it is the norm of all.
        optim: of the code, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedoa",
        title="A personal LoRA whose features stay near the common one's",
        paper="Yang et al., arXiv 2025",
        arxiv="2505.01075",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head is trained and averaged with the common LoRA and is the personal model's too. "
            "Features leave the last block at the token that the head reads (the code: the last one, behind LLaMA's last norm). "
            "Steps are of 8 rows, over which the code takes the norm too, but it makes one step of 16 such."
        ),
        views=("personal", "global"),
        sends="both factors of the common LoRA, the head, and the number of examples",
    )

    rank: Count = 8
    alpha: Positive = 16.0
    pull: NonNegative = 0.5
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    epochs: Positive = 3.0
    batch: Count = 8
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    @property
    def sees_rows(self) -> str:
        return "pulls a batch together by the root of a sum over its rows"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        lora = LoRA(self.rank, self.alpha, self.sites)
        return {"lora": (lora, SHARED), "mine": (lora, PERSONAL), "head": (task.head, SHARED)}

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"mine" if view == "personal" else "lora": 1.0})

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.index > 0:
            pack.minimise(self.near, ("mine",), self.optim, self.epochs, self.steps, self.batch)
        return self.fit(pack, ("lora", "head"))

    def near(self, pack: Pack, batch: Batch) -> Tensor:
        """L(W0 + p) + λ ‖H_p - H_g‖, [k]."""
        with torch.no_grad():
            _, common = pack.with_features(batch, use={"lora": 1.0})
        out, own = pack.with_features(batch, use={"mine": 1.0})
        valid = torch.from_numpy(batch.index >= 0).to(own.device)
        square = ((own - common) * valid[..., None]).square().sum((1, 2))
        apart = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)  # whose gradient at 0 is 0
        return pack.loss(out, batch) + self.pull * apart
