"""HeteroFL (E. Diao, J. Ding, V. Tarokh, ICLR 2021, arXiv 2010.01264): clients hold leading slices of every matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Gt, Le
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
)

if TYPE_CHECKING:
    from weft.aggregation.mean import Weight

Rate = Annotated[float, Gt(0), Le(1)]


class HeteroFL(Method):
    """A client of rate p trains the first ⌈p·r⌉ ranks of every LoRA; each entry becomes the mean over those who hold it.

    While a client trains, the LoRA's output is divided by p, so that a small one moves activations as far as a large one (the
    paper's scaler); the server's model is the largest, without it.

    Attributes:
        rank, alpha, sites: of the whole LoRA; its scale α/r is that of every slice.
        rates: of simulated clients, in turn; the paper's levels a to e are 1, 1/2, 1/4, 1/8 and 1/16.
        scaler: divide by p in training.
        masked: logits of classes that a client has no rows of are set to 0 in its loss, and so is the weight of its rows of the
            head for them, which is the paper's remedy for label skew. The server then learns which classes a client has.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="heterofl",
        title="Leading slices of low-rank adapters, averaged entry by entry",
        paper="Diao et al., ICLR 2021",
        arxiv="2010.01264",
        family="selective",
        challenges=("computational heterogeneity",),
        evidence="code",
        deviations=(
            "The paper slices the widths of networks that it trains from scratch; a pretrained backbone would lose its features. "
            "Here the ranks of LoRA are sliced, as HetLoRA truncates them, and every client has the whole head. Rates stay with "
            "their clients (the code's `fix`), and the learning rate stays the same over the rounds."
        ),
        needs=("factors",),
        sends="the leading ranks of every LoRA that it holds, the head, and the number of examples",
        asks=("rate",),
        reveals=("classes",),
    )

    rank: Count = 16
    alpha: Positive = 16.0
    sites: str = "q,v"
    rates: tuple[Rate, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    scaler: bool = True
    masked: bool = False
    weighting: Weighting = "uniform"
    epochs: Positive = 5.0
    batch: Count = 10
    optim: Optim = Optim("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, clip=1.0, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "masks the classes that a client has no rows of" if self.masked else ""

    @property
    def gives_away(self) -> str:
        return super().gives_away if self.masked else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        nested(LoRA(self.rank, self.alpha), self.rates)

    @property
    def sums(self) -> bool:
        return not self.masked

    def profile(self, position: int) -> dict[str, Any]:
        return {"rate": self.rates[position % len(self.rates)]}

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if self.masked and task.kind != "classification":
            raise UserError("heterofl masks the classes that a client lacks, and this task has none: set method.masked to false.")
        lora = LoRA(self.rank, self.alpha, self.sites).leading(rate_of(client))
        return {"lora": (lora, SHARED), "head": (task.head, SHARED)}

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        if view is not None or not self.scaler:
            return pack(batch)
        scale = torch.tensor([1 / float(c.facts.get("rate", 1.0)) for c in pack.clients], dtype=pack.dtype, device=pack.device)
        return pack(batch, use={"lora": batch.of(scale)})

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        out = self.forward(pack, batch)
        if self.masked:
            lacks = batch.of(~self.seen(pack)).unsqueeze(1)
            out = Output(out.logits.masked_fill(lacks, 0.0))
        return pack.loss(out, batch)

    def seen(self, pack: Pack) -> Tensor:
        """[K, C] bool: the classes of which each client has rows to train on."""
        found = torch.zeros(len(pack.clients), len(pack.task.classes), dtype=torch.bool, device=pack.device)
        for row, client in zip(found, pack.clients, strict=True):
            row[torch.from_numpy(pack.labels(client.data.train)).to(pack.device)] = True
        return found

    def train(self, pack: Pack) -> Iterable[Update]:
        for update in self.fit(pack):
            if self.masked:
                k = next(i for i, client in enumerate(pack.clients) if client.id == update.client.id)
                update.facts["classes"] = self.seen(pack)[k].nonzero().flatten().tolist()
            yield update

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        classes = len(server.bench.task.classes)
        outputs = [f"head/{site.name}/" for site in server.sites("head") if site.role == "head" and site.d_out == classes][-1:]

        def weight(update: Update) -> Weight:
            """Of the output layer only rows of classes that the client has; what a stranger tells that is no class is none."""
            told = update.facts.get("classes")
            has = {c for c in told if type(c) is int and 0 <= c < classes} if isinstance(told, list) else set()
            found: dict[str, float | Tensor] = {}
            for name, value in update.tensors.items():
                found[name] = server.weigh(update)
                if any(map(name.startswith, outputs)):
                    assert isinstance(value, Tensor)
                    found[name] = torch.zeros_like(value)
                    found[name][sorted(has)] = server.weigh(update)  # type: ignore[index]
            return found

        server.mean(updates, leading=True, weight=weight if self.masked else None)


def rate_of(client: ClientInfo) -> float:
    """The share of the ranks that a client holds.

    Raises:
        UserError: it is none.
    """
    rate = float(client.facts.get("rate", 1.0))
    if not 0 < rate <= 1:
        raise UserError(f"client {client.id} has the rate {rate:g}: give it more than 0, and at most 1.")
    return rate


def nested(whole: LoRA, rates: tuple[float, ...]) -> None:
    """
    Raises:
        UserError: no rates, or two of them that are slices of one size.
    """
    if not rates:
        raise UserError("method.rates names no rate: give some, such as [1.0, 0.5].")
    sizes: dict[int, float] = {}
    for rate in sorted(rates):
        size = whole.leading(rate).rank
        if size in sizes and sizes[size] != rate:
            raise UserError(
                f"of {whole.rank} ranks the rates {sizes[size]:g} and {rate:g} are both {size}, so that one is no slice of the "
                "other: choose rates that are further apart, or a larger method.rank."
            )
        sizes[size] = rate
