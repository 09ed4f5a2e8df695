"""MPFT: clients send class prototypes of a frozen encoder, once; the server trains one residual adapter on all of them.

J. Zhang, Y. Duan, S. Niu, Y. Cao, W. Y. B. Lim, "Enhancing Federated Domain Adaptation with Multi-Domain Prototype-Based
Federated Fine-Tuning", ICLR 2025, arXiv 2410.07738. Code: ntu-zjy/DomainFL.

Round 0: each client embeds its training rows with the frozen CLIP image tower and sends, per class, their mean, a random share,
or k-means centres. The server trains z + ReLU(W2·ReLU(W1·z)) on the prototypes of all clients, without averaging any, by
cross-entropy under the frozen text head. Round 1: clients receive the adapter. A client may then adapt it to its own domain with
a few examples per class, held near the common one by distillation (view ``personal``).

The text head is made of the class names on both sides, so that it does not travel; all clients use one template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor

from weft.aggregation.prototypes import Way, pick
from weft.contract import (
    GIVEN,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Residual,
    Round,
    ServerState,
    Task,
    Update,
    Whole,
    mean_of,
)


class MPFT(Method):
    """Defaults of the code; prototypes come from undisturbed pictures in evaluation mode.

    Attributes:
        prototypes: ``mean`` (one per class), ``random`` (a share of the embeddings) or ``cluster`` (k-means centres).
        share: ρ; ⌈ρ·N_c⌉ prototypes of class c for ``random`` and ``cluster``. noise: standard deviation of Gaussian noise on
            every prototype; without clipping it proves no privacy.
        ratio: width of the embedding over that of the adapter's hidden layer.
        server_epochs: most epochs over the prototypes. server_batch: prototypes in a step. settled: training ends when the last
            20 losses deviate by less, once the rate has risen.
        shots: examples per class that a client adapts with before it is tested; 0 = it uses the common adapter. kd: weight λ of
            the distillation then. adapt_steps: of that, on all shots at once.
        optim: of the server, and of a client that adapts; its weight decay is what PyTorch does where the code says nothing.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="mpft",
        title="Class prototypes go up once; the server trains one residual adapter on all of them",
        paper="Zhang et al., ICLR 2025",
        arxiv="2410.07738",
        family="adapters",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "All clients use one template, so that the text head is the same everywhere and does not travel; prototypes are of "
            "undisturbed pictures in evaluation mode. The server's training may settle only after its warm-up, and local "
            "adaptation takes 100 steps on all shots at once."
        ),
        views=("global", "personal"),
        sends="prototypes, which are embeddings of its rows or means of them, under the names of the classes it has",
        needs=("images", "two towers", "all classes", "all updates"),
    )
    unused: ClassVar[tuple[str, ...]] = ("weighting", "epochs", "steps", "batch")

    prototypes: Way = "cluster"
    share: Annotated[float, Gt(0), Le(1)] = 0.1
    noise: NonNegative = 0.0
    ratio: Count = 4
    server_epochs: Count = 200
    server_batch: Count = 10
    settled: NonNegative = 1e-3
    shots: Whole = 0
    kd: NonNegative = 10.0
    adapt_steps: Whole = 100
    optim: Optim = Optim("adamw", lr=1e-3, weight_decay=0.01, clip=1.0, schedule="cosine", warmup=0.05)

    @property
    def sees_rows(self) -> str:
        return "sends what the frozen backbone makes of rows"

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"adapter": (Residual(self.ratio), GIVEN), "mine": (Residual(self.ratio), TEMPORARY)}

    def plan(self, server: ServerState, t: int) -> Round | None:
        return [Round(0, "prototypes", "all"), Round(1, "receive", "all")][t] if t < 2 else None

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"mine" if view == "personal" else "adapter": 1.0})

    # round 0 --------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        embedding = server.bench.of(client).backbone.embedding
        assert embedding is not None
        return {f"prototype/{c}": (None, embedding.d_in) for c in range(len(server.bench.task.classes))}

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == "receive":
            return []
        rows = [c.data.train for c in pack.clients]
        found = []
        for z, own, g in zip(pack.embed(rows), rows, pack.generators("prototypes"), strict=True):
            y = torch.from_numpy(pack.labels(own))
            mine = {int(c): pick(z[y == c].cpu(), self.prototypes, self.share, g) for c in y.unique()}
            if self.noise:
                mine = {c: p + self.noise * torch.randn(p.shape, generator=g, dtype=p.dtype) for c, p in mine.items()}
            found.append({f"prototype/{c}": p for c, p in mine.items()})
        return pack.updates(tensors=found)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = [(int(n.split("/")[1]), v) for u in updates for n, v in sorted(u.tensors.items()) if isinstance(v, Tensor)]
        if not any(len(v) for _, v in received):
            return
        z = torch.cat([v for _, v in received])
        y = torch.cat([torch.full((len(v),), c) for c, v in received])
        order = torch.randperm(len(z), generator=server.generator("shuffle"))
        size = min(self.server_batch, len(z))
        steps = len(z) // size  # the remainder is dropped, as in the code
        bench = server.pack()
        optimizer = bench.optimizer("adapter", settings=self.optim, total=steps * self.server_epochs)
        losses: list[float] = []
        for epoch in range(self.server_epochs):
            for chosen in order[: steps * size].view(steps, size):
                batch = rows_of(y[chosen].unsqueeze(0), bench.device)
                objective = _of_embeddings(z[chosen].to(bench.device).unsqueeze(0))
                losses.append(float(bench.step(optimizer, objective, batch)))
            # not while the rate still rises: a few prototypes would stop before they have begun
            if epoch >= self.optim.warmup * self.server_epochs and len(losses) > 20 and np.std(losses[-20:]) < self.settled:
                break
        for name in bench.params("adapter"):
            server.write(name, bench.value(0, name))

    # after round 1 ----------------------------------------------------------------------------------------------------

    def personalise(self, pack: Pack) -> None:
        """CE + λ·KL(common ‖ own) on a few examples per class; the KL is the mean over all B·C elements, as in the code."""
        pack.copy("adapter", "mine")
        chosen = [self._few(pack, k) for k in range(len(pack.clients))]
        if not any(map(len, chosen)):
            return
        embedded = pack.embed(chosen)
        width = max(map(len, chosen))
        z = torch.stack([torch.cat([e, e.new_ones(width - len(e), e.shape[1])]) for e in embedded])
        y = torch.from_numpy(np.stack([np.pad(pack.labels(r), (0, width - len(r)), constant_values=-1) for r in chosen]))
        batch = rows_of(y, pack.device)
        with torch.no_grad():
            common = torch.log_softmax(pack.tail(z, use={"adapter": 1.0}).logits, -1)
        optimizer = pack.optimizer("mine", settings=self.optim, total=self.adapt_steps)

        def near_common(pack: Pack, batch: Batch) -> Tensor:
            out = pack.tail(z, use={"mine": 1.0})
            apart = (common.exp() * (common - torch.log_softmax(out.logits, -1))).mean(-1)
            return pack.loss(out, batch) + self.kd * mean_of(apart, batch.mask)

        for _ in range(self.adapt_steps):
            pack.step(optimizer, near_common, batch)
        pack.copy("adapter", "mine", ~batch.mask.any(1))  # weight decay alone has moved that of a client without rows

    def _few(self, pack: Pack, k: int) -> np.ndarray:
        """Table rows of at most ``shots`` examples of each class."""
        rows = pack.clients[k].data.train
        order = rows[torch.randperm(len(rows), generator=pack.generators("shots")[k]).numpy()]
        labels = pack.labels(order)
        return np.concatenate([order[:0], *(order[labels == c][: self.shots] for c in np.unique(labels))])


def rows_of(labels: Tensor, device: torch.device) -> Batch:
    """A batch of embeddings: labels [K, n], -1 = padding."""
    mask = (labels >= 0).to(device)
    return Batch(None, np.zeros(tuple(labels.shape), np.int64), labels.clamp(min=0).to(device), mask)


def _of_embeddings(z: Tensor) -> Callable[[Pack, Batch], Tensor]:
    """The loss of the common adapter on embeddings [1, n, e] of a batch."""
    return lambda bench, batch: bench.loss(bench.tail(z, use={"adapter": 1.0}), batch)
