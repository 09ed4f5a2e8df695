"""DepthFL (M. Kim, S. Yu, S. Kim, S.-M. Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous Clients", ICLR 2023)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
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
    Exit,
    LoRA,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    ServerState,
    Task,
    Update,
    UserError,
    Weighting,
    Whole,
    average,
    distillation,
)


class DepthFL(Method):
    """Clients hold the first 1 … M stages of the model, each with a classifier behind it, and their classifiers teach each other.

    A client of depth d minimises Σ_{i ≤ d} CE(oᵢ, y) + Σ_{i ≤ d} Σ_{j ≠ i} w_t/(d-1)·KL(pⱼ ‖ pᵢ), where oᵢ are the logits of its
    i-th exit, pᵢ their softmax, and no gradient goes through pⱼ. The server takes the mean of each tensor over those who hold it.
    The model predicts with the mean of all exits' logits; each exit is a view of its own.

    FedDyn (Acar et al., ICLR 2021, arXiv 2111.04263) keeps clients together: their loss gains α/2 ‖θ - θ_received‖² - ⟨θ, gₖ⟩, a
    client's gₖ falls by α(θₖ - θ_received) in its turn, and the server moves by h, which all clients count for, seen or not.

    Attributes:
        stages: M, groups of blocks of as equal size as can be.
        rank, alpha, sites: of LoRA in the blocks of the stages that a client holds.
        dyn: α of FedDyn; 0 = off.
        ramp: rounds T over which the exits begin to teach each other, w_t = exp(-5(1 - min(t, T)/T)²); 0 = w_t is 1, as in the
            paper's equation.
        decay: of the learning rate, per round.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="depthfl",
        title="Depth by device: exits after each stage that teach each other",
        paper="Kim et al., ICLR 2023",
        family="selective",
        challenges=("computational heterogeneity",),
        evidence="code",
        deviations=(
            "The paper trains whole networks from scratch; here the backbone is frozen, and LoRA in the held blocks is trained, "
            "and the exits. An exit is the model's own way from hidden states to logits (its pooling and final norm) with a head "
            "of its own: the attention gate and the convolutions of the paper's exits belong to its image network. A language "
            "model keeps its output layer, and an exit is a scale and a shift of each feature."
        ),
        sends="the LoRA factors of its stages, the exits behind them, and the number of examples",
        views=("global", "global/exit 1", "global/exit 2", "global/exit 3", "global/exit 4"),
        asks=("stages",),
        needs=("separate blocks",),
    )

    stages: Count = 4
    rank: Count = 8
    alpha: Positive = 8.0
    sites: str = "q,v"
    dyn: NonNegative = 0.1
    ramp: Whole = 300
    decay: Positive = 0.998
    weighting: Weighting = "uniform"
    epochs: Positive = 5.0
    batch: Count = 50
    optim: Optim = Optim("sgd", lr=0.1, weight_decay=1e-3, schedule="constant")

    @property
    def views(self) -> tuple[str, ...]:
        return ("global", *(f"global/exit {i + 1}" for i in range(self.stages)))

    def ends(self, backbone: Backbone) -> dict[str, int]:
        """Exit -> the last block of its stage.

        Raises:
            UserError: there are fewer blocks than stages, or a stage ends within an encoder that a decoder follows.
        """
        blocks = len(backbone.blocks)
        if self.stages > blocks:
            raise UserError(
                f'depthfl cuts the model into {self.stages} stages, and "{backbone.name}" has {blocks} blocks: set '
                f"method.stages to at most {blocks}."
            )
        if backbone.encoder_decoder:
            raise UserError(
                f'depthfl needs blocks that follow each other, and "{backbone.name}" is an encoder with a decoder: choose a '
                "decoder or an encoder."
            )
        return {f"exit{i + 1}": blocks * (i + 1) // self.stages - 1 for i in range(self.stages)}

    def profile(self, position: int) -> dict[str, Any]:
        return {"stages": position % self.stages + 1}

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        depth = int(client.facts.get("stages", self.stages))
        if not 1 <= depth <= self.stages:
            raise UserError(f"client {client.id} holds {depth} of {self.stages} stages: give it 1 to {self.stages}.")
        ends = dict(list(self.ends(backbone).items())[:depth])
        lora = LoRA(self.rank, self.alpha, self.sites, blocks=tuple(range(max(ends.values()) + 1)))
        return {"lora": (lora, SHARED), **{name: (Exit(), SHARED) for name in ends}}

    # client -------------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        ends = self.ends(pack.backbone)
        if view not in (None, "global"):
            name = view.removeprefix("global/").replace(" ", "")
            return pack.exits(batch, {name: ends[name]})[name]
        return average(list(pack.exits(batch, ends).values()))

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        depth = self.depths(pack)
        deepest = int(depth.max())
        out = list(pack.exits(batch, dict(list(self.ends(pack.backbone).items())[:deepest])).values())
        d = batch.of(depth)
        weight = self.ramped(pack.round.index) / (d - 1).clamp(min=1).to(pack.dtype)
        loss = torch.zeros_like(pack.loss(out[0], batch))
        for i, student in enumerate(out):
            loss = loss + (i < d) * pack.loss(student, batch)
            for j, teacher in enumerate(out):
                if j != i:
                    loss = loss + (i < d) * (j < d) * weight * distillation(teacher, student, batch.mask, 1.0, batch.allowed)
        return loss

    def ramped(self, t: int) -> float:
        """w_t."""
        return math.exp(-5 * (1 - min(t, self.ramp) / self.ramp) ** 2) if self.ramp else 1.0

    def depths(self, pack: Pack) -> Tensor:
        """[K] how many stages each client holds."""
        return torch.tensor([sum(n.startswith("exit") for n in parts) for parts in pack.adaptations], device=pack.device)

    def train(self, pack: Pack) -> Iterable[Update]:
        ends = torch.tensor(list(self.ends(pack.backbone).values()), device=pack.device)
        blocks = torch.arange(len(pack.backbone.blocks), device=pack.device)
        pack.hold(blocks <= ends[self.depths(pack) - 1].unsqueeze(1))
        received = pack.params("*")
        changes: dict[str, Any] = {"lr": self.optim.lr * self.decay**pack.round.index, "prox": self.dyn}
        if not self.dyn:
            return self.fit(pack, **changes)
        memory = {n: self.remembered(pack, n, v) for n, v in received.items()}
        pack.offsets = {n: -g for n, g in memory.items()}
        list(self.fit(pack, **changes))
        for name, value in pack.params("*").items():
            has = pack.rows(name)
            for k, client in enumerate(pack.clients):
                if client.n and bool(has[k]):
                    client.memo[f"g/{name}"] = (memory[name][k] - self.dyn * (value[k] - received[name][k])).detach().cpu()
        return pack.updates()

    def remembered(self, pack: Pack, name: str, like: Tensor) -> Tensor:
        """gₖ of one tensor, [K, …]."""
        nothing = torch.zeros_like(like[0])
        return torch.stack([client.memo.get(f"g/{name}", nothing).to(like) for client in pack.clients])

    # server -------------------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> str:
        return "adds up at its server what whole rounds change, by FedDyn (dyn=0 does not)" if self.dyn else super().waits

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        held: Counter[str] = Counter()

        def counted() -> Iterator[Update]:
            for update in updates:
                held.update(update.tensors.keys())
                yield update

        before = dict(server.shared)
        server.mean(counted())
        for name, count in held.items() if self.dyn else ():
            old, mean = before[name], server.shared[name]
            assert isinstance(old, Tensor) and isinstance(mean, Tensor)
            h = server.memo.get(f"h/{name}", torch.zeros_like(mean)) - self.dyn * count / len(server.clients) * (mean - old)
            server.memo[f"h/{name}"] = h
            server.write(name, mean - h / self.dyn)
