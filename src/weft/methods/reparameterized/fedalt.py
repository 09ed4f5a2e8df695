"""FedALT: every client goes on with its own LoRA, beside a frozen one that is the mean of all others', mixed for each token.

J. Bian, L. Wang, L. Zhang, J. Xu, "FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA", AAAI
2026, arXiv 2503.11880. Code: jmbian/FedALT.

    client k:  A_k, B_k, G_k ← local steps from where they were, beside A_R, B_R as received        A_k, B_k go up
    server:    A_R, B_R of client k ← mean over all other clients' newest A_m, B_m, factor by factor

Nothing that the server makes ever takes the place of a client's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor

from weft.contract import (
    GIVEN,
    PERSONAL,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    Message,
    Method,
    MethodInfo,
    Optim,
    Positive,
    Routed,
    Scope,
    ServerState,
    Task,
    Update,
)

OWN = Scope.UP | Scope.KEEP  # sent, and never overwritten


class FedALT(Method):
    """Defaults of the code.

    Attributes:
        rank, alpha: of both LoRAs; the update is (α/r)·B A, before the mixture.
        router: start values of G: ``random`` as in the code, or ``even``: both LoRAs begin at a half.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        optim: of the code, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedalt",
        title="An own LoRA beside the mean of all others'",
        paper="Bian et al., AAAI 2026",
        arxiv="2503.11880",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head stays the client's own. All clients draw the same first A, where the code draws "
            "for each, and the mean of unlike ones means little. Clients that are away are in the mean with what they sent last."
        ),
        views=("personal",),
        needs=("factors",),
        sends="both factors of its own LoRA, of which every other client gets to see the mean with others",
    )

    demands: ClassVar[tuple[str, ...]] = ("mix",)
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    rank: Count = 8
    alpha: Positive = 32.0
    router: Literal["random", "even"] = "random"
    sites: str = "q,v"
    epochs: Positive = 5.0
    batch: Count = 8
    optim: Optim = Optim("adamw", lr=3e-4, weight_decay=0.05, clip=1.0)

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        part = Routed(self.rank, self.alpha, self.sites, router=self.router)
        return {
            "mix": (part, {"A": OWN, "B": OWN, "RA": GIVEN, "RB": GIVEN, "G": PERSONAL}),
            "head": (task.head, PERSONAL),
        }

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        known = server.memo.get("known", [])
        others, own = len(known) - (client.id in known), server.notes.get(client.id)
        message = Message()
        for name, total in server.memo.items() if others else ():
            if name.startswith("mix/"):
                mine = own.get(name, 0.0)
                message.tensors[_rest(name)] = (total - mine) / others
        return message

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        memo = server.memo
        for update in updates:
            before, new = server.notes.get(update.client.id), {n: v for n, v in update.tensors.items() if n.startswith("mix/")}
            for name, value in new.items():
                assert isinstance(value, Tensor)
                memo[name] = memo.get(name, 0.0) + (value - before.get(name, 0.0))
            server.notes.put(update.client.id, new)
            memo["known"] = sorted({*memo.get("known", []), update.client.id})


def _rest(name: str) -> str:
    """``mix/SITE/RA`` for ``mix/SITE/A``."""
    site, _, role = name.rpartition("/")
    return f"{site}/R{role}"
