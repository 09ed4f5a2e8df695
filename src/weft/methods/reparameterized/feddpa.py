"""FedDPA: a common LoRA and one of each client's own, mixed for every row by how much it is like what the client has trained on.

Y. Yang, G. Long, T. Shen, J. Jiang, M. Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024,
arXiv 2403.19211. Code: Lydia-yang/FedDPA.

    T, in every round t ≥ 1:  l ← steps with a·l + (1 - a)·g, g as received; then g ← steps with g alone, which goes up
    F, after the last round:  l ← g, then steps with l alone

A row x is answered with w·l + (1 - w)·g, where w = λ · mean over S training rows of cos(z(x), z(row)), within [0, λ], and z is
what leaves the last block with l alone at work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
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
    Values,
    Weighting,
    make_batch,
)

REFERENCES, HAS = "like/values/rows", "like/values/has"


class FedDPA(Method):
    """Defaults of the code.

    Attributes:
        variant: ``T``: both LoRAs are trained in every round; ``F``: the own one from the common one, before it is scored.
        rank, alpha: of both LoRAs; the update is (α/r)·B A.
        own_weight: a.
        most: λ, the largest weight that a row gives to the own LoRA.
        references: S.
        order: of the phases of a round: ``own-first``, beside the common LoRA as it was received, as in the code; or
            ``common-first``, beside that which the client has just trained.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        weighting: ``uniform`` as in the code, or by ``examples``.
        optim: of the code, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="feddpa",
        title="A common and a personal LoRA, mixed row by row",
        paper="Yang et al., NeurIPS 2024",
        arxiv="2403.19211",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head is trained and averaged with the common LoRA. A row like those of the training "
            "gets more of the own LoRA, as the paper says; the released code gives that weight to the other one, and by default "
            "writes its answers before it has any. Gradients flow through the frozen LoRA's output, which the code cuts off. "
            "Features leave the last block at the token that the head reads (the code: the last one, behind LLaMA's last norm), "
            "and training rows to compare with are drawn once for a client, not for every row."
        ),
        views=("dynamic", "static", "local", "global"),
        sends="both factors of the common LoRA, the head, and the number of examples",
    )

    variant: Literal["T", "F"] = "T"
    rank: Count = 8
    alpha: Positive = 16.0
    own_weight: Share = 0.5
    most: Share = 0.5
    references: Count = 5
    order: Literal["own-first", "common-first"] = "own-first"
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    epochs: Positive = 10.0
    batch: Count = 64
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.vocabulary is not None:
            raise UserError(
                f'feddpa weighs whole rows, and backbone "{backbone.name}" writes answers, which are not in them yet: choose an '
                "encoder or a classifier, such as --model bert-base, or a method such as fedalt."
            )
        lora, s = LoRA(self.rank, self.alpha, self.sites), self.references
        return {
            "lora": (lora, SHARED),
            "mine": (lora, PERSONAL if self.variant == "T" else TEMPORARY),
            "like": (Values((("rows", (s, backbone.d)), ("has", (s,)))), TEMPORARY),
            "head": (task.head, SHARED),
        }

    # training -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        both = self.variant == "T" and pack.round.index > 0
        if both and self.order == "own-first":
            self._own(pack, self.own_weight)
        pack.minimise(self.objective, ("lora", "head"), self.optim, self.epochs, self.steps, self.batch)
        if both and self.order == "common-first":
            self._own(pack, self.own_weight)
        return pack.updates()

    def _own(self, pack: Pack, share: float) -> None:
        def mixed(pack: Pack, batch: Batch) -> Tensor:
            return pack.loss(pack(batch, use={"mine": share, "lora": 1 - share}), batch)

        pack.minimise(mixed, ("mine",), self.optim, self.epochs, self.steps, self.batch)

    # predicting ---------------------------------------------------------------------------------------------------------

    def personalise(self, pack: Pack) -> None:
        if self.variant == "F":
            pack.copy("lora", "mine")
            self._own(pack, 1.0)
        else:  # who has no own LoRA yet predicts with the common one, not with a share of it
            pack.copy("lora", "mine", self._bare(pack))
        index = np.full((len(pack.clients), self.references), -1)
        for row, client, g in zip(index, pack.clients, pack.generators("references"), strict=True):
            drawn = client.data.train[torch.randperm(len(client.data.train), generator=g).numpy()[: self.references]]
            row[: len(drawn)] = drawn
        batch = make_batch(pack.task, pack.bench.table, index, None, pack.device)
        with torch.no_grad():
            pack.tensors[REFERENCES] = self._seen(pack, batch)
        pack.tensors[HAS] = torch.from_numpy(index >= 0).to(pack.device, pack.dtype)

    def _bare(self, pack: Pack) -> Tensor:
        """[K] bool: the clients whose own LoRA has not been trained, so that its B is where it began."""
        part, moved = pack.adaptations[0]["mine"][0], []
        for site in part.sites(pack.backbone):
            name = f"mine/{site.called}/B"
            start = pack.bench.draw(part.tensors(pack.backbone, site)["B"], name)
            moved.append((pack.tensors[name] != start.to(pack.tensors[name])).flatten(1).any(1))
        return ~torch.stack(moved).any(0)

    def _seen(self, pack: Pack, batch: Batch) -> Tensor:
        """z of each row, of length 1: [k, b, d]."""
        return F.normalize(pack.with_features(batch, use={"mine": 1.0})[1], dim=-1)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        if view in (None, "global"):
            return pack(batch, use={"lora": 1.0})
        if view == "local":
            return pack(batch, use={"mine": 1.0})
        if view == "static":
            return pack(batch, use={"mine": self.own_weight, "lora": 1 - self.own_weight})
        rows, has = batch.of(pack.tensors[REFERENCES]), batch.of(pack.tensors[HAS])
        alike = (self._seen(pack, batch) @ rows.mT * has[:, None]).sum(-1) / has.sum(1, keepdim=True).clamp(min=1)
        weight = (self.most * alike).clamp(0, self.most)
        return pack(batch, use={"mine": weight, "lora": 1 - weight})
