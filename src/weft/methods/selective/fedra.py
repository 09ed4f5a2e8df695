"""FedRA: every round each client tunes the LoRA of a random subset of the blocks, stitched together in order.

S. Su, B. Li, X. Xue, "FedRA: A Random Allocation Strategy for Federated Tuning to Unleash the Power of Heterogeneous Clients",
ECCV 2024, arXiv 2311.11227. Code: leondada/FedRA.

A client of capacity n_k runs embedding → its n_k drawn blocks in their order → head; the others are bypassed by the residual
stream. Each block's factors are then averaged over the clients that held it; a block that nobody held stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    Message,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Round,
    ServerState,
    Share,
    Task,
    Update,
    Weighting,
)


class FedRA(Method):
    """Defaults of the code for ViT-B/16; its adapted layers are the attention output and the second feed-forward layer.

    Attributes:
        rank, alpha: of LoRA.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        capacities: share of the blocks that a client can hold, dealt to the clients in turn (the paper's 12, 10, 8, 6, 4, 3 of
            12 blocks); a client's own fact ``capacity`` (a number of blocks) goes first.
        coverage: repair the draw until every block is held by somebody (the code has this switched off).
        truncate: cut every epoch of every client to the fewest batches that any client of the federation has, plus one, as the
            code does.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedra",
        title="Random allocation of blocks to clients",
        paper="Su et al., ECCV 2024",
        arxiv="2311.11227",
        family="selective",
        challenges=("computational heterogeneity", "data heterogeneity"),
        evidence="code",
        deviations=(
            "The patch embedding gets no LoRA, which the code's choice of layers also hits. Every client works through all of "
            "its rows, where the code cuts each epoch to the batches of the shortest client, plus one (so does `truncate`). "
            "Clients are taken to hold the whole backbone, so that frozen blocks do not travel."
        ),
        asks=("capacity", "domain"),
        tells=("blocks", "limit"),
        needs=("separate blocks", "factors"),
        sends="the LoRA factors of the blocks it was given this round, the head, and the number of examples",
    )

    rank: Count = 8
    alpha: Positive = 8.0
    sites: str = "o,ffn.out"
    capacities: tuple[Share, ...] = (1.0, 10 / 12, 8 / 12, 6 / 12, 4 / 12, 3 / 12)
    coverage: bool = False
    truncate: bool = False
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 128
    optim: Optim = Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, clip=10.0, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"lora": (LoRA(self.rank, self.alpha, self.sites), SHARED), "head": (task.head, SHARED)}

    def profile(self, position: int) -> dict[str, Any]:
        return {"capacity": self.capacities[position % len(self.capacities)]} if self.capacities else {}

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        by_domain = all("domain" in c.facts for c in server.clients)
        return Round(t, who=("domain",) if by_domain else "sample")  # one random client per domain

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        held = self.allocation(server)[client.id]
        message = server.stale(client)
        message.tensors = {n: v for n, v in message.tensors.items() if not n.startswith("lora/")}
        for site in server.sites("lora"):
            if site.block in held:
                for role in ("A", "B"):
                    name = f"lora/{site.name}/{role}"
                    message.tensors[name] = server.shared[name]
        message.facts = {"blocks": held}
        if self.truncate:
            # clients without rows send nothing, so they must not shorten the others' epoch either
            message.facts["limit"] = min((-(-c.n // self.batch) for c in server.clients if c.n), default=0) + 1
        return message

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale(client)  # the whole model, whatever blocks the client trains

    def allocation(self, server: ServerState) -> dict[str, list[int]]:
        """The round's draw: client -> its blocks in increasing order, uniform without replacement."""
        layers = len(server.bench.backbone.blocks)
        drawn = {
            c.id: set(torch.randperm(layers, generator=server.generator("allocation", c.id))[: self.blocks(c, layers)].tolist())
            for c in server.cohort
        }
        if self.coverage:
            self._cover(drawn, layers, server.generator("coverage"))
        return {c: sorted(blocks) for c, blocks in drawn.items()}

    def blocks(self, client: ClientInfo, layers: int) -> int:
        """n_k: the fact ``capacity`` is a number of blocks, or a share of them if a fraction (1.0 = all)."""
        capacity = client.facts.get("capacity", 1.0)
        count = round(capacity * layers) if isinstance(capacity, float) else int(capacity)
        return min(max(count, 1), layers)

    def _cover(self, drawn: dict[str, set[int]], layers: int, g: torch.Generator) -> None:
        """While a block is uncovered, a random client swaps blocks that others hold too for uncovered ones."""
        ids = sorted(drawn)
        if sum(len(b) for b in drawn.values()) < layers:
            return  # together the cohort can't hold all blocks
        while missing := sorted(set(range(layers)) - set().union(*drawn.values())):
            who = drawn[ids[int(torch.randint(len(ids), (1,), generator=g))]]
            spare = sorted(b for b in who if sum(b in other for other in drawn.values()) > 1)
            for old, new in zip(spare, missing, strict=False):
                who.remove(old)
                who.add(new)

    def train(self, pack: Pack) -> Iterable[Update]:
        hold = torch.zeros(len(pack.clients), len(pack.backbone.blocks), dtype=torch.bool)
        for row, facts in zip(hold, pack.facts, strict=True):
            row[facts["blocks"]] = True
        pack.hold(hold)
        caps = [f["limit"] for f in pack.facts] if self.truncate else None
        pack.minimise(self.objective, ("*",), self.optim, self.epochs, self.steps, self.batch, caps)
        return pack.updates()
