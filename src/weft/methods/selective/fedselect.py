"""FedSelect: each client keeps the entries of its matrices to itself that have moved most, and averages the others.

R. Tamirisa, C. Xie, W. Bao, A. Zhou, R. Arel, A. Shamsian, "FedSelect: Personalized Federated Learning with Customized Selection
of Parameters for Fine-Tuning", CVPR 2024, arXiv 2404.02478. Code: lapisrocks/fedselect.

With m_k the mask of client k, 1 where an entry is its own, and all 0 at first, its turn is

    θ_k ← m_k ⊙ θ_k + (1 - m_k) ⊙ θ̄                      what was received; m_k as it was sent last
    E times:  θ_k ← θ_k - η m_k ⊙ ∇F_k, an epoch long;  θ_k ← θ_k - η (1 - m_k) ⊙ ∇F_k, an epoch long      (LocalAlt)
    (1 - m_k) ⊙ θ_k is sent
    every L turns, in each matrix at most α of which is its own:                                        (GradSelect)
        of the entries with m_k = 0 the p with the largest |θ_k - θ_ref| become its own;  θ_ref ← θ_k

and θ̄ is the mean of each entry over those who sent it; one that nobody sent stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.pruning import largest
from weft.contract import (
    ClientInfo,
    Count,
    Masked,
    Message,
    MethodInfo,
    Optim,
    Pack,
    Portion,
    Positive,
    ServerState,
    Share,
    Tune,
    Tuned,
    Update,
    Weighting,
)

MASK, SENT, OWN, REFERENCE = "mask/", "sent/", "own/", "reference/"
"""What a client remembers of a matrix: m_k of its next turn and of its last one, [bool]; its own entries in the latter; θ_ref."""


class FedSelect(Tuned):
    """Defaults of the code, which are the paper's for CIFAR-10.

    Attributes:
        tune: all weights of the backbone and the head, or whatever else. Matrices are what has two sides or more, the head's too.
        rate: p, the share of a matrix's common entries that a client takes for itself at a time.
        limit: α, the share of a matrix beyond which a client takes none any more.
        every: L, of the client's turns.
        epochs: E of LocalAlt, each one pass over the rows for the client's own entries and another for the common ones.
        steps: instead, this many for its own entries and then as many for the common ones.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedselect",
        title="Entries that have moved most stay at their client, the others are averaged",
        paper="Tamirisa et al., CVPR 2024",
        arxiv="2404.02478",
        family="selective",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "It fine-tunes a pretrained model, of which layer norms stay common: the code tells tensors apart by their names. Of "
            "equal movements the first come first, where the code takes all of them. L counts a client's own turns, which are "
            "the rounds where all take part. Clients are scored after the server's step. The workshop version (arXiv "
            "2306.13264), which looks for entries by a lottery within a turn, is not here."
        ),
        views=("personal",),
        sends="the entries of the tuned tensors that it does not keep to itself, which ones they are, and the number of examples",
    )
    in_part: ClassVar[tuple[str, ...]] = ("*",)

    tune: Tune = Tune("weights")
    rate: Portion = 0.25
    limit: Share = 0.8
    every: Count = 3
    weighting: Weighting = "uniform"
    epochs: Positive = 15.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")

    # server -------------------------------------------------------------------------------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale_in_part(client)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(server.noting_places(updates))

    # client -------------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        for name in matrices(pack):
            own = [(c.memo.get(SENT + name), c.memo.get(OWN + name)) for c in pack.clients]
            if any(mask is not None for mask, _ in own):
                pack.tensors[name] = torch.stack(
                    [
                        value if mask is None or entries is None else Masked(entries, mask).over(value)
                        for value, (mask, entries) in zip(pack.tensors[name], own, strict=True)
                    ]
                )

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        chosen = matrices(pack)
        own = {n: remembered(pack, MASK, n) for n in pack.tensors}
        before = {n: pack.tensors[n] for n in chosen}
        self.local_alt(pack, own)
        for k, client in enumerate(pack.clients):
            for name in chosen if len(client.data.train) else ():
                self.grad_select(pack, k, name, own[name][k].cpu(), before[name][k])
        return pack.updates(masks={n: ~own[n] for n in chosen})

    def local_alt(self, pack: Pack, own: dict[str, Tensor]) -> None:
        """Train a client's own entries and the common ones by turns; whoever has none of a kind leaves those passes out."""
        whole = int(self.epochs) if self.steps is None else 1
        passes = [1.0] * whole + ([self.epochs - whole] if self.steps is None and self.epochs > whole else [])
        optimizer = pack.optimizer("*", settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
        for i, epochs in enumerate(passes):
            for kind, entries in (("own", own), ("common", {n: ~m for n, m in own.items()})):
                some = pack.of(c for k, c in enumerate(pack.clients) if any(bool(m[k].any()) for m in entries.values()))
                for batch in some.batches(epochs, self.steps, self.batch, stream=f"{kind} {i}"):
                    loss = pack.step(optimizer, self.objective, batch, tick=kind == "common", entries=entries)
                    pack.report(batch, loss)

    def grad_select(self, pack: Pack, k: int, name: str, mask: Tensor, before: Tensor) -> None:
        """Remember the client's own entries of a matrix, and let their mask grow in every L-th turn but the first."""
        client, now = pack.clients[k], pack.value(k, name)
        reference = client.memo.setdefault(REFERENCE + name, before.cpu().clone())
        if count := int(mask.sum()):
            client.memo |= {SENT + name: mask, OWN + name: now[mask]}
        if client.rounds_seen and client.rounds_seen % self.every == 0:
            if count <= self.limit * mask.numel():
                mask = mask | largest((now - reference).abs(), ~mask, round(self.rate * (mask.numel() - count)))
            client.memo |= {MASK + name: mask, REFERENCE + name: now}


def matrices(pack: Pack) -> list[str]:
    """Names of the tensors with two sides or more: no biases, no norms."""
    return [n for n, v in pack.tensors.items() if v.dim() > 2]


def remembered(pack: Pack, word: str, name: str) -> Tensor:
    """[K, …] the masks that clients remember by this word of a tensor, False where they remember none."""
    none = torch.zeros(pack.tensors[name].shape[1:], dtype=torch.bool)
    return torch.stack([c.memo.get(word + name, none) for c in pack.clients]).to(pack.device)
