"""LotteryFL: each client prunes the common model to a ticket of its own, and only tickets are exchanged.

A. Li, J. Sun, B. Wang, L. Duan, S. Li, Y. Chen, H. Li, "LotteryFL: Personalized and Communication-Efficient Federated Learning
with Lottery Ticket Hypothesis on Non-IID Datasets", SEC 2021, arXiv 2008.03371. Code: charleslipku/LotteryFL.

With M_k the mask of client k, all 1 at first, and ρ_k the share of matrices that it has left, its turn is

    θ ← θ_g ⊙ M_k                                                          what it received: its ticket
    if its accuracy on its validation rows > a and ρ_k > r_target:
        of each matrix the r_p smallest |θ| that are left go from M_k;  ρ_k ← (1 - r_p) ρ_k
        θ ← θ_0 ⊙ M_k                                                      the rewind: what everybody began with
    θ ← local steps in which nothing that is pruned moves;  θ ⊙ M_k is sent

and each entry of θ_g becomes the mean over those whose M_k has it; one that nobody has stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.pruning import pruned
from weft.contract import (
    ClientInfo,
    ClientState,
    Count,
    Message,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    ServerState,
    Share,
    Tune,
    Tuned,
    Update,
    Weighting,
)

MASK, LEFT = "mask/", "left"
"""What a client remembers: M_k, [bool] of each matrix, and ρ_k."""


class LotteryFL(Tuned):
    """Defaults of the code for CIFAR-10. On MNIST it prunes to ``target=0.1``.

    Attributes:
        tune: all weights of the backbone and the head, or whatever else. Matrices are what has two sides or more, the head's too.
        threshold: a, the accuracy beyond which a client prunes.
        rate: r_p, the share that goes at a time of what a matrix has left; 0 prunes nothing.
        target: r_target: whoever has this share left, or less, prunes no more.
        rewind: a client that has pruned trains from the start values of its ticket in this turn, and not from what it received.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="lotteryfl",
        title="Each client prunes its own lottery ticket, and only tickets are exchanged",
        paper="Li et al., SEC 2021",
        arxiv="2008.03371",
        family="selective",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "The paper trains small networks from random weights. Here a pretrained model is pruned, and the rewind leads back "
            "to that, with LoRA to no update at all. Accuracy is that on validation rows, as in the paper, where the code looks "
            "at test rows; a client without any prunes nothing. At least one entry of a matrix stays. Scores are of the last "
            "round, where the code reports each client's best one."
        ),
        views=("personal",),
        needs=("classes",),
        sends="the entries of the tuned tensors that it has not pruned, which ones they are, and the number of examples",
    )
    in_part: ClassVar[tuple[str, ...]] = ("*",)

    tune: Tune = Tune("weights")
    threshold: Share = 0.2
    rate: Share = 0.2
    target: Share = 0.5
    rewind: bool = True
    weighting: Weighting = "uniform"
    epochs: Positive = 60.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=0.01, momentum=0.5, schedule="constant")

    # server -------------------------------------------------------------------------------------------------------------

    @property
    def sees_rows(self) -> str:
        return "prunes by how well a client does on its validation rows"

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale_in_part(client)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(server.noting_places(updates))

    # client -------------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        if any(LEFT in client.memo for client in pack.clients):
            for name, mask in tickets(pack).items():
                pack.tensors[name] = pack.tensors[name] * mask

    def train(self, pack: Pack) -> Iterable[Update]:
        for k, good in enumerate(self.wins(pack)):
            if good:
                self.prune(pack, k)
        return self.local(pack, tickets(pack))

    def wins(self, pack: Pack) -> list[bool]:
        """Whether each client's model is so good on its validation rows that it prunes, before it is trained."""
        rows = [c.data.val if len(c.data.train) else c.data.val[:0] for c in pack.clients]
        logits = pack.predict(self.forward, rows, dtype=pack.dtype)
        right = [z.argmax(1).numpy() == pack.labels(r) for z, r in zip(logits, rows, strict=True)]
        return [len(r) > 0 and float(r.mean()) > self.bar(c) for c, r in zip(pack.clients, right, strict=True)]

    def bar(self, client: ClientState) -> float:
        """a."""
        return self.threshold

    def prune(self, pack: Pack, k: int) -> None:
        """Take the smallest entries from a client's ticket, and leave its model with the others, rewound or as they are."""
        memo = pack.clients[k].memo
        left = memo.get(LEFT, 1.0)
        if left <= self.target or not self.rate:
            return
        memo[LEFT] = left * (1 - self.rate)
        start = pack.start_values(k) if self.rewind else {}
        at = torch.tensor([k], device=pack.device)
        for name, values in pack.tensors.items():
            value = pack.value(k, name)
            new = start.get(name, value)
            if value.dim() > 1:
                alive = memo.get(MASK + name, torch.ones_like(value, dtype=torch.bool))
                memo[MASK + name] = pruned(value.abs(), alive, self.rate)
                new = new * memo[MASK + name]
            pack.tensors[name] = values.index_copy(0, at, new.to(values)[None])

    def local(self, pack: Pack, entries: dict[str, Tensor]) -> Iterable[Update]:
        """Local epochs in which these entries of matrices move, [K, …], and are sent."""
        if pack.has_work():
            turn = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
            optimizer = pack.optimizer("*", settings=self.optim, **turn)  # type: ignore[arg-type]
            for batch in pack.batches(**turn):  # type: ignore[arg-type]
                pack.report(batch, pack.step(optimizer, self.objective, batch, entries=entries))
        return pack.updates(masks=entries)


def tickets(pack: Pack) -> dict[str, Tensor]:
    """M_k [K, …] of each matrix, which has two sides or more; True where a client has pruned nothing."""
    found = {}
    for name, value in pack.tensors.items():
        if value.dim() > 2:
            whole = torch.ones(value.shape[1:], dtype=torch.bool)
            found[name] = torch.stack([c.memo.get(MASK + name, whole) for c in pack.clients]).to(pack.device)
    return found
