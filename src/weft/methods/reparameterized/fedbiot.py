"""FedBiOT: clients tune the last blocks behind a thinned-out copy of the others, which the server keeps like the whole model.

F. Wu, Z. Li, Y. Li, B. Ding, J. Gao, "FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model", KDD 2024, arXiv
2406.17706. Code: HarliWu/FedBiOT.

Of L blocks the last n_a are the adapter. The emulator has m = round(n (1 - β)) of the n = L - n_a others, evenly spread. Both
have LoRA, w_A and w_E:

    server, on public rows:  w_E ← steps down  d(E(x), T(x)) + λ KL(p_full(x; w_A) ‖ p_emu(x; w_E, w_A))      before each round
    client:                  w_A ← steps down  CE(emulator + adapter) + ε ‖w_A - w_A received‖²
    server:                  w_A ← Σ p_k w_A of the cohort,  p_k ∝ n_k

E(x) is what leaves the emulator, T(x) what leaves the n blocks without LoRA, and d(s, t) = mean (s - t)² / mean t². The norm is
that of the change of the weights, s (B A - B' A') with s = α/r. Without public rows w_E is never trained: FedOT, with this split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from weft.contract import (
    GIVEN,
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
    ServerState,
    Share,
    Task,
    Update,
    UserError,
    Whole,
    distillation,
)


class FedBiOT(Method):
    """Defaults of the released code, but for LoRA, which it has not, and whose rank and layers are our choice.

    Attributes:
        rank, alpha: of both LoRAs; the update is (α/r)·B A.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        adapter_blocks: n_a, the last blocks, which clients train.
        drop: β, the share of the other blocks that the emulator lacks.
        proximal: ε. kd: λ.
        layerwise: d is summed over the outputs of all blocks of the emulator, each against that of the same block in the model.
        first_steps: of the server before the first round. align_steps: of the server after each mean.
        steps: of a client in a round. batch: rows in a step, of a client and of the server.
        optim: of both.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedbiot",
        title="Clients tune the last blocks behind an emulator of the others, which the server distils",
        paper="Wu et al., KDD 2024",
        arxiv="2406.17706",
        family="reparameterized",
        challenges=("computational heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "The proximal term has a gradient; in the code it has none. Blocks that the emulator lacks are skipped, on a "
            "backbone that everybody is taken to hold, so that no frozen block travels and none is hidden from clients. The "
            "server aligns the emulator right after each mean: before the next round, and after the last. A classifier's head "
            "is trained with the adapter, and outside the proximal term. Distances are taken over the rows' own tokens and "
            "divergences over those to be predicted, never over padding. Rank, layers and scale of LoRA are our choice."
        ),
        views=("global", "global/emulator"),
        sends="both LoRA factors of the last blocks, the head, and the number of examples",
        needs=("separate blocks", "factors"),
        public="the emulator stays as it was cut out, which is FedOT",
    )

    rank: Count = 8
    alpha: Positive = 16.0
    sites: str = "q,v"
    adapter_blocks: Count = 2
    drop: Share = 0.2
    proximal: NonNegative = 0.1
    kd: NonNegative = 0.9
    layerwise: bool = False
    first_steps: Whole = 500
    align_steps: Whole = 10
    steps: Count | None = 30
    batch: Count = 1
    optim: Optim = Optim("sgd", lr=5e-4, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        emulator, adapter = self.emulator(backbone), self.adapter(backbone)
        return {
            "lora": (LoRA(self.rank, self.alpha, self.sites, blocks=adapter), SHARED),
            "emulator": (LoRA(self.rank, self.alpha, self.sites, blocks=emulator), GIVEN),
            "head": (task.head, SHARED),
        }

    def adapter(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks of the adapter."""
        blocks = len(backbone.blocks)
        return tuple(range(blocks - self.adapter_blocks, blocks))

    def emulator(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that the emulator has: the first of those below the adapter, the last, and some in between.

        Raises:
            UserError: there are none.
        """
        blocks = len(backbone.blocks)
        n = blocks - self.adapter_blocks
        if n < 1:
            raise UserError(
                f'an adapter of {self.adapter_blocks} blocks leaves no block of "{backbone.name}", which has {blocks}, to the '
                "emulator: choose a smaller method.adapter_blocks."
            )
        m = round(n * (1 - self.drop))
        if m < 1:
            raise UserError(
                f"an emulator without a share of {self.drop:g} of {n} blocks has none left: choose a smaller method.drop."
            )
        return tuple(i * (n - 1) // (m - 1) for i in range(m)) if m > 1 else (n - 1,)

    def rehearsed(self) -> Self:
        return replace(super().rehearsed(), first_steps=min(self.first_steps, 1), align_steps=min(self.align_steps, 1))

    # predicting -----------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use=self._placed(pack, whole=view == "global"))

    def _placed(self, pack: Pack, whole: bool) -> dict[str, float]:
        """Put the adapter behind the whole model or behind the emulator.

        Returns:
            the LoRAs that are at work then, each at 1.
        """
        if whole:
            pack.hold(None)
            return {"lora": 1.0}
        hold = torch.zeros(len(pack.clients), len(pack.backbone.blocks), dtype=torch.bool)
        hold[:, [*self.emulator(pack.backbone), *self.adapter(pack.backbone)]] = True
        pack.hold(hold)
        return {"lora": 1.0, "emulator": 1.0}

    # client ---------------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        received = pack.params("lora")

        def near(pack: Pack, batch: Batch) -> Tensor:
            return self.objective(pack, batch) + self.proximal * batch.of(self.moved(pack, received))

        return self.fit(pack, ("lora", "head"), near)

    def moved(self, pack: Pack, received: dict[str, Tensor]) -> Tensor:
        """‖s (B A - B' A')‖² over all layers of the adapter, [K], of products of r columns.

        B A - B' A' = [B - B', B'] [A; A - A'] = U V, whose squared norm is the sum of the entries of Uᵀ U ∘ V Vᵀ. So near to what
        was received a difference of products would be rounding: differences are taken before them.
        """
        lora, _ = pack.adaptations[0]["lora"]
        found = []
        for site in lora.sites(pack.backbone):
            name, other = (f"lora/{site.called}/{role}" for role in "AB")
            a, scale = pack.tensors[name], lora.constants(site)["scale"]
            a0, b, b0 = pack.own(received[name]), pack.tensors[other], pack.own(received[other])
            u, v = torch.cat([b - b0, b0], 2), torch.cat([a, a - a0], 1)
            found.append(scale**2 * ((u.mT @ u) * (v @ v.mT)).sum((1, 2)))
        return torch.stack(found).sum(0)

    # server ---------------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        self._align(server, self.first_steps, "first alignment")

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates)
        self._align(server, self.align_steps, "alignment")

    def _align(self, server: ServerState, steps: int, stream: str) -> None:
        """w_E after so many steps on public rows; the adapter and the head stand still."""
        if server.public is None or not steps:
            return
        pack = server.pack(public=True)
        optimizer = pack.optimizer("emulator", settings=self.optim.but(prox=0.0), total=steps)
        for batch in pack.batches(steps=steps, size=self.batch, stream=stream):
            pack.step(optimizer, self.gap, batch)
        for name in pack.params("emulator"):
            server.write(name, pack.value(0, name))

    def gap(self, pack: Pack, batch: Batch) -> Tensor:
        """How far the emulator is from the whole model, with the present adapter behind either: [k]."""
        emulator = self.emulator(pack.backbone)
        compared = emulator if self.layerwise else emulator[-1:]
        with torch.no_grad():
            teacher, originals = pack.with_hidden(batch, compared, self._placed(pack, whole=True))
        student, found = pack.with_hidden(batch, compared, self._placed(pack, whole=False))
        apart = torch.stack([distance(found[i][0], originals[i][0], found[i][1]) for i in compared]).sum(0)
        return apart + self.kd * distillation(teacher, student, batch.mask, 1.0)


def distance(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
    """Σ (s - t)² / Σ t² of each client over the tokens of its rows: [k], of [k, b, T, d] and bool [k, b, T]."""
    mask = own[..., None]
    return ((student - teacher) * mask).square().sum((1, 2, 3)) / (teacher * mask).square().sum((1, 2, 3))
