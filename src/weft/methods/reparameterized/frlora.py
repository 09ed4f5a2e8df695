"""FRLoRA: every round begins at the principal part of the pretrained weights, and what it changes goes onto the frozen rest.

Y. Yan, C.-M. Feng, W. Zuo, R. S. M. Goh, Y. Liu, L. Zhu, "Federated Residual Low-Rank Adaptation of Large Language Models", ICLR
2025. Code: IAMJackYan/FRLoRA.

With s = α/r and W0 = U S Vᵀ, of which U_r, S_r, V_r are the leading r:

    B0 = U_r (S_r/s)^½,  A0 = (S_r/s)^½ V_rᵀ;  Ŵ ← W0 - s B0 A0            once
    client:  B_k, A_k ← local steps from B0, A0 beside Ŵ                    in every round anew
    server:  Ŵ ← Ŵ + s (B̄ Ā - B0 A0),  with the means over the cohort

The model is Ŵ + s B0 A0. What goes down in a round is B̄ and Ā: everybody has B0 and A0, and knows how many rounds there were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

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
    LowRank,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Round,
    ServerState,
    Task,
    Update,
    UserError,
    Values,
    Weighting,
)
from weft.tensors.principal import principal

ROUNDS = "merged/values/rounds"


class FRLoRA(Method):
    """Defaults of the paper's runs on GLUE.

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        weighting: ``uniform`` as in paper and code, or by ``examples``.
        steps: of a client in a round; the paper takes 10 on its smallest set.
        optim: its schedule goes over the whole run; moments begin anew in each round.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="frlora",
        title="Each round from the principal part of the weights, its change onto the rest",
        paper="Yan et al., ICLR 2025",
        family="reparameterized",
        challenges=("data heterogeneity",),
        deviations=(
            "The frozen rest stays as the pretrained weights with a term beside them that grows. The code leaves A untrained, "
            "against the paper, and keeps AdamW's moments over the rounds."
        ),
        needs=("factors",),
        sends="both LoRA factors of every site, the head, and the number of examples",
    )

    demands: ClassVar[tuple[str, ...]] = ("lora",)

    rank: Count = 16
    alpha: Positive = 32.0
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    steps: Count | None = 30
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=2e-4, schedule="cosine", warmup=0.03)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {
            "base": (Delta(self.sites), GIVEN),
            "merged": (Values((("rounds", (1,)),)), GIVEN),
            "lora": (LoRA(self.rank, self.alpha, self.sites), SENT),
            "head": (task.head, SHARED),
        }

    def start(self, server: ServerState) -> None:
        backbone, lora = server.bench.backbone, server.adaptation["lora"][0]
        if server.bench.others:
            raise UserError("frlora begins at the weights of one backbone: leave --models out, or take fedit.")
        for site in server.sites("lora"):
            u, d, vh = principal(backbone.weight(site), self.rank, server.generator("principal", site.name))
            if len(d) < self.rank:
                raise UserError(
                    f"rank {self.rank} is more than {site.name} has, a matrix of {site.d_out} x {site.d_in}: choose a smaller "
                    "method.rank."
                )
            root = (d / lora.constants(site)["scale"]).sqrt()
            server.start[f"lora/{site.name}/B"] = (u * root).to(server.bench.dtype)
            server.start[f"lora/{site.name}/A"] = (root[:, None] * vh).to(server.bench.dtype)

    def plan(self, server: ServerState, t: int) -> Round | None:
        return Round(t, extra={"of": server.rounds}) if t < server.rounds else None

    def load(self, pack: Pack) -> None:
        """Ŵ = W0 + s Σ B̄ Ā - (rounds + 1) s B0 A0."""
        times, lora = -(pack.tensors[ROUNDS].view(-1, 1, 1) + 1), pack.adaptations[0]["lora"][0]
        for site in lora.sites(pack.backbone):
            a, b = (pack.tensors[f"lora/{site.name}/{role}"] for role in "AB")
            base = f"base/{site.name}/delta"
            pack.tensors[f"{base}.A"] = torch.cat([pack.tensors[f"{base}.A"], a], 1)
            pack.tensors[f"{base}.B"] = torch.cat([pack.tensors[f"{base}.B"], b * (times * lora.constants(site)["scale"])], 2)

    def train(self, pack: Pack) -> Iterable[Update]:
        part = pack.round.index, pack.round.extra["of"]
        pack.minimise(self.objective, ("*",), self.optim, self.epochs, self.steps, self.batch, part=part)
        return pack.updates()

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        means = server.average(updates)
        lora = {n: v for n, v in means.items() if n.startswith("lora/")}
        for site in server.sites("lora") if lora else ():
            a, b = lora[f"lora/{site.name}/A"], lora[f"lora/{site.name}/B"]
            scale = server.adaptation["lora"][0].constants(site)["scale"]
            server.grow(f"base/{site.name}/delta", LowRank(B=b, A=a, scale=scale))
        for name in means.keys() - lora.keys():
            server.write(name, means[name])
        if lora:
            merged = server.shared[ROUNDS]
            assert isinstance(merged, Tensor)
            server.write(ROUNDS, merged + 1)
