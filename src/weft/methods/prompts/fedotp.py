"""FedOTP: a shared and a private context, matched to the patches of a picture by partial optimal transport.

H. Li, W. Huang, J. Wang, Y. Shi, "Global and Local Prompts Cooperation via Optimal Transport for Federated Learning", CVPR 2024,
arXiv 2403.00041. Code: HongxiaLee/FedOTP.

Of a picture with patch features g_1 … g_V and the class features h_{c,n} of prompts n = global, local, all of unit length:
S_c = ⟨g_v, h_{c,n}⟩ [V, 2], T_c = argmin ⟨T, 1 − S_c⟩ − λ·H(T) with columns that sum to γ/2 and rows that sum to at most 1/V, and
logit_c = s·Σ T_c∘S_c. A share 1 − γ of the patches may be looked at by neither prompt. T is a constant to the gradient. Both
prompts are trained by cross-entropy; the global one is averaged, the local one never leaves its client.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch.nn.functional import normalize

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClassContext,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Place,
    Positive,
    Round,
    ServerState,
    Task,
)
from weft.tensors.transport import Transport, transported


class FedOTP(Method):
    """The code has two scripts: few shots (tokens 16, γ 0.8, λ 0.01, 5 local epochs, as many rows a step as shots, 10 clients,
    all in each round) and CIFAR-100 (tokens 4, γ 0.8, λ 0.1, 1 epoch, 32 rows, a tenth of 100 clients); flags left alone are γ 1
    and λ 0.1. Defaults are those of few shots, but for λ and the rows of a step.

    Attributes:
        tokens: l, of each of the two prompts. where: the class name stands: ``end``, ``middle`` or ``front``.
        gamma: γ, share of the patches that prompts look at, which scales logits too. entropy: λ; below 0.05, more iterations
            bring rows below 1/V.
        iterations: of the solver. balanced: its ablation by Sinkhorn, in which every patch is looked at: γ is 1 then.
        std: of the random start, which is one draw for all clients.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedotp",
        title="A shared and a private text prompt, matched to image patches by partial optimal transport",
        paper="Li et al., CVPR 2024",
        arxiv="2403.00041",
        family="prompts",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "Transport is solved in the log domain, in single precision at least, by a fixed number of iterations; the code "
            "stops when a mean over the batch has settled, by which pictures and clients would see each other. Optimizers are "
            "new in each turn, and a client's own, where the code has one for all. Pictures are not augmented."
        ),
        views=("personal",),
        sends="the shared context tokens; the private ones stay; every client knows all class names",
        needs=("images", "two towers"),
    )

    tokens: Count = 16
    where: Place = "end"
    gamma: Annotated[float, Gt(0), Le(1)] = 0.8
    entropy: Positive = 0.1
    iterations: Count = 100
    balanced: bool = False
    std: NonNegative = 0.02
    epochs: Positive = 5.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="constant")

    @property
    def transport(self) -> Transport:
        return Transport(1.0 if self.balanced else self.gamma, self.entropy, self.iterations, self.balanced)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        prompt = ClassContext(self.tokens, self.where, std=self.std)
        return {"context": (prompt, SHARED), "own": (prompt, PERSONAL)}

    def plan(self, server: ServerState, t: int) -> Round | None:
        """Everybody trains in round 0, so that all have a prompt of their own."""
        return Round(t, who="all" if t == 0 else "sample") if t < server.rounds else None

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        patches = normalize(pack.patches(batch), dim=-1)
        texts = torch.stack([pack.texts({part: 1.0}, batch.clients) for part in ("context", "own")], 2)
        return Output(pack.scale * transported(patches, texts, self.transport))
