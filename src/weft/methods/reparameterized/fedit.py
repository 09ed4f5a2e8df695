"""FedIT: federated averaging of the LoRA factors.

J. Zhang, S. Vahidian, M. Kuo, C. Li, R. Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning",
ICASSP 2024, arXiv 2305.05644. Code: JayZhang42/FederatedGPT-Shepherd.

Each round every client of the cohort loads the global A and B, trains them with a fresh AdamW and learning-rate schedule, and
the server averages A and B *each apart*, weighted by example counts. The mean of the products differs from the product of the
means by -Σ p_k (B_k - B̄)(A_k - Ā): that bias is the method, exact rules are others.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import SHARED, Adaptation, Backbone, ClientInfo, Count, LoRA, Method, MethodInfo, Optim, Positive, Task


class FedIT(Method):
    """Defaults of the code, but for one local epoch in batches of 32 as in the paper's experiment (the code: 10, and 64).

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        optim: of the code, whose trainer is that of transformers: it clips gradients at a norm of 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedit",
        title="Federated averaging of LoRA factors",
        paper="Zhang et al., ICASSP 2024",
        arxiv="2305.05644",
        family="reparameterized",
        challenges=("communication efficiency",),
        evidence="code",
        deviations=(
            "It tunes a classifier, whose head is trained and averaged too, instead of a language model that follows "
            "instructions. Settings are the code's, but for one local epoch in batches of 32 (the code: 10, and 64)."
        ),
        sends="both LoRA factors of every site, the head, and the number of examples",
    )

    rank: Count = 16
    alpha: Positive = 16.0
    sites: str = "q"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"lora": (LoRA(self.rank, self.alpha, self.sites), SHARED), "head": (task.head, SHARED)}
