"""FFA-LoRA: the random A is frozen for ever, only B is trained and averaged.

Y. Sun, Z. Li, Y. Li, B. Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.

With one A0 for all, the mean of the products is the product of the means: Σ p_k B_k A0 = (Σ p_k B_k) A0, half of LoRA's bytes
travel, and noise added to B enters the weights linearly. A0 comes from the run's seed by name, so it is never sent.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import GIVEN, SHARED, Adaptation, Backbone, ClientInfo, Count, LoRA, Method, MethodInfo, Optim, Positive, Task


class FFALoRA(Method):
    """Defaults as replications give them (no official code, and the paper's body was not read); the learning rate is one of the
    grid {0.1, 0.2, 0.5, 1} that a replication takes from the paper.

    Attributes:
        rank, alpha: of LoRA. From B = 0 with SGD, (α, lr) and (cα, lr/c²) give the same model.
        sites: sources conflict between query+value and attention+feed-forward.
        train_head: train and average the head too; the paper's stays random and frozen.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="ffa-lora",
        title="Frozen random A, averaged B",
        paper="Sun et al., ICLR 2024",
        arxiv="2403.12313",
        family="reparameterized",
        challenges=("privacy preservation", "server-side aggregation bias"),
        evidence="reconstructed",
        deviations=(
            "There is no official code, and of the paper the abstract was read and its public reviews: the rest follows other "
            "papers' descriptions and replications, which name rank, α, steps, batch and the frozen random head. Query and "
            "value get LoRA where sources conflict, and A0 is uniform instead of Gaussian. The differentially private variant "
            "is not in it."
        ),
        needs=("factors",),
        sends="the LoRA factor B of every site, and the number of examples",
    )

    rank: Count = 8
    alpha: Positive = 8.0
    sites: str = "q,v"
    train_head: bool = False
    steps: Count | None = 10
    batch: Count = 200
    optim: Optim = Optim("sgd", lr=0.5, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {
            "lora": (LoRA(self.rank, self.alpha, self.sites), {"A": GIVEN, "B": SHARED}),
            "head": (task.head, SHARED if self.train_head else GIVEN),
        }
