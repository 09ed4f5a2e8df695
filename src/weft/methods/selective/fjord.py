"""FjORD (S. Horváth, S. Laskaridis, M. Almeida, I. Leontiadis, S. Venieris, N. Lane, "FjORD: Fair and Accurate Federated Learning
under heterogeneous targets with Ordered Dropout", NeurIPS 2021, arXiv 2102.13451).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.contract import (
    SHARED,
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
    ServerState,
    Task,
    Update,
    UserError,
    Weighting,
    distillation,
)
from weft.methods.selective.heterofl import Rate, nested, rate_of


class FjORD(Method):
    """Ordered dropout on LoRA: each step trains the first ⌈p·r⌉ ranks for a p drawn from the widths that the client can hold.

    With ``distil`` a step's loss is CE(f_{p_max}(x), y) + KL(f_{p_max}(x) ‖ f_p(x)), no gradient going through the teacher; else
    it is CE(f_p(x), y), and only the ranks below p move. Each entry becomes the mean over those who hold it, by their examples:
    the ring between two widths is that of the clients whose p_max reaches beyond it. Every width is a view of the server's model.

    Attributes:
        rank, alpha, sites: of the whole LoRA; its scale α/r is that of every width.
        rates: P, from the smallest; simulated clients are dealt p_max in turn.
        distil: the widest width of a client teaches the drawn one.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fjord",
        title="Ordered dropout over the ranks of low-rank adapters",
        paper="Horváth et al., NeurIPS 2021",
        arxiv="2102.13451",
        family="selective",
        challenges=("computational heterogeneity",),
        evidence="code",
        deviations=(
            "The paper orders the units of networks that it trains from scratch; here the backbone is frozen and whole, and the "
            "ranks of LoRA are ordered; the head is whole at every width. The code's distillation takes the cross-entropy with "
            "the teacher's probabilities, whose gradient is that of the divergence taken here. Where nothing is distilled, ranks "
            "beyond the drawn width do not move, by weight decay neither."
        ),
        needs=("factors",),
        sends="the leading ranks of every LoRA that it holds, the head, and the number of examples",
        views=("global", "global/width 0.2", "global/width 0.4", "global/width 0.6", "global/width 0.8"),
        asks=("rate",),
    )

    rank: Count = 16
    alpha: Positive = 16.0
    sites: str = "q,v"
    rates: tuple[Rate, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    distil: bool = True
    weighting: Weighting = "examples"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=0.1, weight_decay=1e-4, schedule="constant")

    def __post_init__(self) -> None:
        super().__post_init__()
        nested(self.whole, self.rates)
        if tuple(sorted(set(self.rates))) != self.rates:
            raise UserError("method.rates are widths from the smallest to the largest, each once: put them in order.")

    @property
    def views(self) -> tuple[str, ...]:
        """The whole model, and its widths below that."""
        return ("global", *(f"global/width {p:g}" for p in self.rates if p < 1))

    @property
    def whole(self) -> LoRA:
        return LoRA(self.rank, self.alpha, self.sites)

    def profile(self, position: int) -> dict[str, Any]:
        return {"rate": self.rates[position % len(self.rates)]}

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        largest = rate_of(client)
        if largest < self.rates[0]:
            raise UserError(
                f"client {client.id} has the rate {largest:g}, less than the smallest width {self.rates[0]:g}: add a smaller one "
                "to method.rates."
            )
        return {"lora": (self.whole.leading(largest), SHARED), "head": (task.head, SHARED)}

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        if view in (None, "global"):
            return pack(batch)
        width = float(view.removeprefix("global/width "))
        return self.at(pack, batch, torch.full((len(pack.clients),), width, dtype=torch.float64))

    def at(self, pack: Pack, batch: Batch, widths: Tensor) -> Output:
        """f_p, for a width of each client, [K]."""
        with pack.values({n: v * self.inside(n, v, widths) for n, v in pack.params("lora").items()}):
            return pack(batch)

    def inside(self, name: str, value: Tensor, widths: Tensor) -> Tensor:
        """Bool [K, …]: the entries of a tensor that lie within each client's width."""
        ranks = torch.tensor([self.whole.leading(float(p)).rank for p in widths], device=value.device).view(-1, 1, 1)
        place = torch.arange(value.shape[1 if name.endswith("/A") else 2], device=value.device)
        return (place.view(1, -1, 1) if name.endswith("/A") else place.view(1, 1, -1)) < ranks

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        optimizer = pack.optimizer("*", settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
        draws = pack.generators("width")
        for batch in pack.batches(self.epochs, self.steps, self.batch):
            widths = self.drawn(pack, batch, draws)

            def objective(pack: Pack, batch: Batch, widths: Tensor = widths) -> Tensor:
                narrow = self.at(pack, batch, pack.own(widths))
                if not self.distil:
                    return pack.loss(narrow, batch)
                wide = pack(batch)
                return pack.loss(wide, batch) + distillation(wide, narrow, batch.mask, 1.0, batch.allowed)

            lora = {} if self.distil else pack.params("lora")
            free = {n: self.inside(n, v, widths).expand_as(v) for n, v in lora.items()}
            pack.report(batch, pack.step(optimizer, objective, batch, entries=free))
        return pack.updates()

    def drawn(self, pack: Pack, batch: Batch, draws: list[torch.Generator]) -> Tensor:
        """[K] the width of each client in the batch, uniform over those that it can hold; 1 for the others."""
        found = torch.ones(len(pack.clients), dtype=torch.float64)
        for k in range(len(draws)) if batch.clients is None else batch.clients.tolist():
            own = [p for p in self.rates if p <= rate_of(pack.clients[k].info(("rate",)))]
            found[k] = own[int(torch.randint(len(own), (1,), generator=draws[k]))]
        return found

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, leading=True)
