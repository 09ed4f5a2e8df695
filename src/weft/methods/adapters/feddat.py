"""FedDAT: a shared and a personal adapter that teach each other.

H. Chen, Y. Zhang, D. Krompass, J. Gu, V. Tresp, "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal
Heterogeneous Federated Learning", AAAI 2024, arXiv 2308.12305. Code: HaokunChen245/FedDAT.

Every client holds three bottleneck adapters of one shape per block: A_c (personal), A_s (shared) and Â_s, a frozen copy of the
A_s it received. The dual-adapter teacher (DAT) uses ½(A_c + Â_s). In each batch the shared adapter learns from the labels and
the DAT, then the personal one from the labels and the shared adapter. Only A_s travels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    Bottleneck,
    ClientInfo,
    Count,
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
    Whole,
    distillation,
)

USE = {"dat": {"mine": 0.5, "teacher": 0.5}, "personal": {"mine": 1.0}, "shared": {"ours": 1.0}}


class FedDAT(Method):
    """Defaults of the released code (the paper's body was not read).

    Attributes:
        reduction: r of the bottleneck d → d/r → d.
        temperature: T of both distillation terms T²·KL.
        alpha, beta: weight of the distillation term in the shared and the personal phase. ramp_rounds: rounds over which they
            rise exponentially from 0, as the paper is recalled to do; the code has no ramp (0).
        share_head: average the head too; the paper's heads are personal.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="feddat",
        title="Dual-adapter teacher: shared and personal adapters distil into each other",
        paper="Chen et al., AAAI 2024",
        arxiv="2308.12305",
        family="adapters",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="code",
        deviations=(
            "The teacher is tested with the newest A_s (the code: that of the round's start). There is no ramp of the "
            "distillation, schedules span the local epochs, and the personal adapter goes on learning after the first "
            "evaluation, where the code's stands still. In each of the two phases the other adapter stays bit for bit as it is; "
            "in the code one AdamW holds both, and its momentum and weight decay go on moving the idle one."
        ),
        views=("dat", "personal", "shared"),
        sends="the shared adapter of every block, and the number of examples",
    )

    reduction: Count = 16
    temperature: Positive = 3.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    ramp_rounds: Whole = 0
    share_head: bool = False
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim(
        "adamw", lr=1e-4, betas=(0.9, 0.98), weight_decay=1e-2, decay_biases=False, schedule="linear", warmup=0.1
    )

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        adapter = Bottleneck(self.reduction)
        return {
            "mine": (adapter, PERSONAL),
            "ours": (adapter, SHARED),
            "teacher": (adapter, TEMPORARY),
            "head": (task.head, SHARED if self.share_head else PERSONAL),
        }

    def forward(self, pack: Pack, batch: Batch, view: str | None = "dat") -> Output:
        return pack(batch, use=USE[view or "dat"])

    def train(self, pack: Pack) -> Iterable[Update]:
        pack.copy("ours", "teacher")  # as received; no optimizer holds it
        if not pack.has_work():
            return pack.updates()
        opt = pack.optimizer(
            "mine",
            "ours",
            "head",
            settings=self.optim,
            epochs=self.epochs,
            steps=self.steps,
            size=self.batch,
            updates_per_batch=2,
        )
        ramp = self._ramp(pack.round.index)
        passes: dict[str, Output] = {}  # of the batch in hand

        def of_shared(pack: Pack, batch: Batch) -> Tensor:
            with torch.no_grad():
                teacher = self.forward(pack, batch, "dat")
            shared = passes["shared"] = self.forward(pack, batch, "shared")
            distil = distillation(teacher, shared, batch.mask, self.temperature, batch.allowed)
            return 0.5 * (pack.loss(shared, batch) + ramp * self.alpha * distil)

        def of_dual(pack: Pack, batch: Batch) -> Tensor:
            dual = self.forward(pack, batch, "dat")
            distil = distillation(passes["shared"], dual, batch.mask, self.temperature, batch.allowed)
            return 0.5 * (pack.loss(dual, batch) + ramp * self.beta * distil)

        for batch in pack.batches(self.epochs, self.steps, self.batch):
            pack.step(opt, of_shared, batch, only=("ours", "head"))
            pack.report(batch, pack.step(opt, of_dual, batch, only=("mine", "head")))
        return pack.updates()

    def personalise(self, pack: Pack) -> None:
        pack.copy("ours", "teacher")  # the dual-adapter teacher is tested with the A_s in hand

    def _ramp(self, t: int) -> float:
        """exp(-5(1 - t/T)²), the usual exponential ramp-up; 1 without one."""
        if t >= self.ramp_rounds:
            return 1.0
        return float(torch.exp(torch.tensor(-5.0 * (1 - t / self.ramp_rounds) ** 2)))
