"""FedSA-LoRA: every client trains A and B, only A is averaged; B and the head stay at home.

P. Guo, S. Zeng, Y. Wang, H. Fan, F. Wang, L. Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
ICLR 2025, arXiv 2410.01463. Code: Pengxin-Guo/FedSA-LoRA.

Client k predicts with W0 + (α/r) B_k Ā: no product of averages occurs, hence no aggregation bias. The released simulation hands
one module from client to client, B included; here every client has its own B, as the paper says.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Task,
    Weighting,
    Whole,
)


class FedSALoRA(Method):
    """Defaults of the code: 10 batches of 128, plain SGD 0.02 (the authors later moved to 0.005).

    Attributes:
        rank, alpha: of LoRA.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        welcome_steps: steps on B and head that a client with training rows which was not drawn yet takes before it is tested;
            new clients have test rows only, and predict with B = 0 and the head's start.
        weighting: of updates in the mean: ``uniform`` as in effect in the code, which weighs by the rows that a turn has worked
            through, 10 batches of 128 for everybody; or ``examples`` (n_k).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedsa-lora",
        title="Shared A, personal B and head",
        paper="Guo et al., ICLR 2025",
        arxiv="2410.01463",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "Every client has a B and a head of its own, as the paper says; the released simulation hands one module from client "
            "to client. A client that was not drawn yet takes 10 steps on B and head, on its own training rows, before it is "
            "tested; new clients have test rows only, and predict with B = 0 and the head's start value."
        ),
        views=("personal",),
        sends="the LoRA factor A of every site, and the number of examples",
    )

    rank: Count = 8
    alpha: Positive = 16.0
    sites: str = "q,v"
    welcome_steps: Whole = 10
    weighting: Weighting = "uniform"
    steps: Count | None = 10
    batch: Count = 128
    optim: Optim = Optim("sgd", lr=2e-2, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        lora = LoRA(self.rank, self.alpha, self.sites)
        return {"lora": (lora, {"A": SHARED, "B": PERSONAL}), "head": (task.head, PERSONAL)}

    def personalise(self, pack: Pack) -> None:
        strangers = pack.of(c for c in pack.clients if c.rounds_seen == 0)
        strangers.minimise(self.objective, ("lora/*/B", "head"), self.optim, 1.0, self.welcome_steps, self.batch)
