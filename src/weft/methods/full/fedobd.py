"""FedOBD: clients send the blocks that they have changed most and nothing of the others; the last epochs are averaged each.

Y. Chen, Z. Chen, P. Wu, H. Yu, "FedOBD: Opportunistic Block Dropout for Efficiently Training Large-scale Neural Networks through
Federated Learning", IJCAI 2023, arXiv 2208.05174. Code: cyyever/distributed_learning_simulator, as it was from April to December
2023 (before, nothing was dropped; since, differences of kept blocks are averaged as if they were weights).

First stage: after its local epochs, a client ranks the blocks b by their mean difference ‖y_b - x_b‖₂ / |b|, and keeps, from the
top, each that still fits into (1 - ρ) d of its d numbers. The server averages over the whole cohort; a block that a client did
not send counts as unmoved. Second stage: all clients take part, drop nothing, and are averaged after every epoch, under one
schedule.

A block is what is trained in one transformer block; every other module is a block of its own. A LoRA pair is never split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from weft.contract import (
    Adaptation,
    Backbone,
    Count,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Round,
    ServerState,
    Share,
    Tuned,
    Update,
    Whole,
)


class FedOBD(Tuned):
    """Defaults of the code's CIFAR-10 runs.

    Attributes:
        rho: ρ, the share of the numbers that a client drops in the first stage; another published configuration has 0.9.
        blocks: ``layers``: what is trained in a transformer block is one block; ``modules``: in each of its modules.
        tail: exchanges of the second stage, an epoch each: the last ones, at most half of all.
        epochs: of the first stage.

    Its quantiser is that of ``--codec`` and ``--download-codec``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedobd",
        title="Only the blocks that moved most go up",
        paper="Chen et al., IJCAI 2023",
        arxiv="2208.05174",
        family="full",
        challenges=("communication efficiency",),
        evidence="code",
        deviations=(
            "The server goes on with the values that it has quantised for clients, where the code adds differences from these to "
            "values that it has not. What is tuned is a setting, LoRA by default, and blocks follow from the backbone's layers, "
            "not from tables of modules. The second stage begins after a number of rounds, never because accuracy has "
            "converged, and nothing of an optimizer outlives "
            "an exchange but its place in the schedule. Where no block fits, the one that moved most goes all the same."
        ),
        sends=(
            "the tensors of the blocks that it has changed most, which tells where its data move the model; and the number of "
            "examples"
        ),
        codec="nnadq",
        download_codec="nnadq",
    )

    rho: Share = 0.3
    blocks: Literal["layers", "modules"] = "layers"
    tail: Whole = 10
    epochs: Positive = 5.0
    batch: Count = 64
    optim: Optim = Optim("sgd", lr=0.1, schedule="cosine")

    @property
    def gives_away(self) -> str:
        return "sends those blocks that have changed most"

    def plan(self, server: ServerState, t: int) -> Round | None:
        first = server.rounds - min(self.tail, server.rounds // 2)
        if t < first:
            return Round(t)
        return Round(t, "tail", "all", {"part": t - first, "of": server.rounds - first}) if t < server.rounds else None

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == "tail":
            yield from self._epoch(pack)
            return
        received, places = pack.params("*"), {c.id: k for k, c in enumerate(pack.clients)}
        for update in self.fit(pack):
            k = places[update.client.id]
            moved = {n: _gap(v, received[n][k]) for n, v in update.tensors.items() if isinstance(v, Tensor)}
            sizes = {n: v.numel() for n, v in update.tensors.items() if isinstance(v, Tensor)}
            kept = self._kept(self._blocks(pack.adaptations[k], pack.backbone), moved, sizes)
            update.tensors = {n: v for n, v in update.tensors.items() if n in kept}
            yield update

    def _blocks(self, adaptation: Adaptation, backbone: Backbone) -> dict[str, str]:
        """The block of each tensor."""
        found = {}
        for part_name, (part, _) in adaptation.items():
            for site in part.sites(backbone):
                apart = self.blocks == "modules" or site.block is None
                for role in part.tensors(backbone, site):
                    found[f"{part_name}/{site.name}/{role}"] = site.name if apart else f"{site.tower} {site.block}"
        return found

    def _kept(self, blocks: Mapping[str, str], moved: Mapping[str, float], sizes: Mapping[str, int]) -> set[str]:
        """Names of the tensors of the blocks that go up.

        Args:
            moved: squared norm of each tensor's difference. sizes: its number of entries.
        """
        square: dict[str, float] = {}
        count: dict[str, int] = {}
        for name, size in sizes.items():
            square[blocks[name]] = square.get(blocks[name], 0.0) + moved[name]
            count[blocks[name]] = count.get(blocks[name], 0) + size
        ranked = sorted(count, key=lambda b: -math.sqrt(square[b]) / count[b])
        room, kept = (1 - self.rho) * sum(count.values()), set()
        for block in ranked:
            if count[block] <= room:
                kept.add(block)
                room -= count[block]
        kept = kept or set(ranked[:1])
        return {n for n in sizes if blocks[n] in kept}

    def _epoch(self, pack: Pack) -> Iterable[Update]:
        """One of the epochs that share a schedule."""
        part = pack.round.extra["part"], pack.round.extra["of"]
        pack.minimise(self.objective, ("*",), self.optim, 1.0, None, self.batch, part=part)
        return pack.updates()

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, absent="unmoved")


def _gap(value: Tensor, received: Tensor) -> float:
    """‖value - received‖², in double precision; a smaller value is a leading slice."""
    inside = received.detach()[tuple(slice(0, size) for size in value.shape)].to("cpu")
    return float((value.double() - inside.double()).square().sum())
