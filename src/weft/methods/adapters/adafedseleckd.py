"""AdaFedSelecKD: a client's own adapter learns from the frozen mean of all, where that is sure of what it says.

X. Feng, X. Feng, X. Du, M.-Y. Kan, B. Qin, "Adapter-based Selective Knowledge Distillation for Federated Multi-domain Meeting
Summarization", IEEE/ACM TASLP 32, 2024, arXiv 2308.03275. There is no code.

    client:  G ← received, and frozen;  p_t = softmax(z_t^G / T), q_t = softmax(z_t^P / T)     t: answer tokens, words, or rows
             h_t = H(p_t) / log V,  m_t = 1 where h_t ≤ τ, else 0
             P ← steps down  NLL + λ T² Σ_t m_t KL(p_t ‖ q_t) / Σ_t m_t                         P goes up, and stays too
    server:  G ← mean of P_k by examples

Either model has all adapters to itself: in no pass do both take part. Where a head is trained, G and P have one each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    Activation,
    Adaptation,
    Backbone,
    Batch,
    Bottleneck,
    ChosenHead,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Placement,
    Positive,
    Task,
    Update,
    UserError,
    distillation,
)

COMMON = {"mine": "bottleneck", "my_head": "head"}
"""Parts of P -> those of G, under whose names P is sent: codecs then see how far it is from what was received."""


class AdaFedSelecKD(Method):
    """Defaults are likely ones: the paper's body was not read.

    Attributes:
        reduction, placement, activation: of both adapters, see ``Bottleneck``; they begin without effect.
        temperature: T.
        kd: λ; 0 = no distillation.
        tau: τ, as a share of log V; 1 = distillation everywhere; ``median``: of each batch of a client, so that its surer half
            counts.
        local_init: what P is when a client begins its turn: ``keep``, what it was when the client's last one ended, or
            ``from_global``, G.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="adafedseleckd",
        title="The common adapter teaches each client's own, where it is sure",
        paper="Feng et al., TASLP 2024",
        arxiv="2308.03275",
        family="adapters",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="reconstructed",
        deviations=(
            "Reconstructed: that the own adapter is what goes up, how entropies are scaled and where they are cut off, what a "
            "client begins its turn with, the sizes and places of the adapters, and all rates. It tunes any model that tells "
            "classes or words apart, not only one that summarizes. A client that has not trained yet is scored with the common "
            "adapter."
        ),
        views=("personal", "global"),
        sends="its own adapter and head, which are its whole model, and the number of examples",
    )

    reduction: Count = 16
    placement: Placement = "block"
    activation: Activation = "relu"
    temperature: Positive = 1.0
    kd: NonNegative = 1.0
    tau: float | Literal["median"] = 0.5
    local_init: Literal["keep", "from_global"] = "keep"
    batch: Count = 8
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if task.kind == "regression":
            raise UserError(
                "adafedseleckd asks a teacher how sure it is, and a single number does not say: choose a task with classes or "
                "words, or a method such as feddat."
            )
        adapter = Bottleneck(self.reduction, placement=self.placement, activation=self.activation, up_std=0.0, like="bottleneck")
        head = ChosenHead(like="head")
        return {
            "bottleneck": (adapter, SHARED),
            "mine": (adapter, PERSONAL),
            "head": (head, SHARED),
            "my_head": (head, PERSONAL),
        }

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use=dict.fromkeys(COMMON.values() if view == "global" else COMMON, 1.0))

    def train(self, pack: Pack) -> Iterable[Update]:
        own = pack.params(*COMMON)
        if self.local_init == "from_global":
            receive(pack)
        pack.minimise(self.objective, COMMON, self.optim, self.epochs, self.steps, self.batch)
        return pack.updates(tensors=[{common(n): pack.value(k, n) for n in own} for k in range(len(pack.clients))])

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        student = self.forward(pack, batch)
        loss = pack.loss(student, batch)
        if not self.kd:
            return loss
        with torch.no_grad():
            teacher = self.forward(pack, batch, "global")
            sure = self.sure(teacher, batch.mask, batch.allowed)
        return loss + self.kd * distillation(teacher, student, sure, self.temperature, batch.allowed)

    def sure(self, teacher: Output, mask: Tensor, allowed: Tensor | None = None) -> Tensor:
        """m: bool [k, m], those of the valid things to predict of which the teacher is sure."""
        h = uncertainty(teacher, self.temperature, allowed)
        if isinstance(self.tau, str):
            return mask & (h <= h.masked_fill(~mask, math.nan).nanmedian(1, keepdim=True).values)
        return mask & (h <= self.tau)

    def personalise(self, pack: Pack) -> None:
        receive(pack, torch.tensor([not c.rounds_seen for c in pack.clients], device=pack.device))


def receive(pack: Pack, clients: Tensor | None = None) -> None:
    """P ← G, for some clients ([K] bool) or all."""
    for own, given in COMMON.items():
        pack.copy(given, own, clients)


def common(name: str) -> str:
    """The tensor of G that is the mean of those of P of this name."""
    part, _, rest = name.partition("/")
    return f"{COMMON[part]}/{rest}"


def uncertainty(out: Output, temperature: float, allowed: Tensor | None = None) -> Tensor:
    """h = H(softmax(z/T)) / log V of each thing to predict, 0 to 1: [k, m].

    Args:
        allowed: [k, m, C] bool, the V classes that each may have; None = all. Of one class alone there is no doubt: 0.
    """
    if allowed is not None:
        out = out.within(allowed)

    def entropy(logits: Tensor, classes: Tensor | None = None) -> Tensor:
        found = torch.special.entr(torch.softmax(logits / temperature, -1)).sum(-1)
        most = found.new_tensor(logits.shape[-1]).log() if classes is None else classes.to(found).log()
        return torch.where(most > 0, found / most, 0.0)

    return out.each(entropy, *(() if allowed is None else (allowed.sum(-1),))).clamp(0, 1)
