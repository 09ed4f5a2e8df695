"""FedAvg: federated averaging of all weights.

B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv 1602.05629 (Algorithm 1).

Each round every client of the cohort starts from the global weights w, takes E epochs of plain SGD in batches of B over its own
n_k examples, and the server sets w to Σ n_k/n · w_k over the cohort, n being its examples.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import Count, MethodInfo, Optim, Positive, Tune, Tuned


class FedAvg(Tuned):
    """Defaults of the paper's experiments with E = 5 and B = 10.

    Attributes:
        tune: all weights of the backbone and the head; other kinds are averaged as well.
        optim: plain SGD at a constant rate η. ``optim.kind=adamw`` with ``optim.lr=5e-5`` is what transformers are usually
            fine-tuned with, and takes twice the weights more of memory.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedavg",
        title="Federated averaging of all weights",
        paper="McMahan et al., AISTATS 2017",
        arxiv="1602.05629",
        family="full",
        challenges=("communication efficiency",),
        evidence="paper",
        deviations=(
            "It fine-tunes a pretrained model instead of training one from the start. The paper searches the learning rate of "
            "each experiment; 0.05 is a choice of ours."
        ),
        sends="all weights of the backbone, the head, and the number of examples",
    )

    tune: Tune = Tune("weights")
    epochs: Positive = 5.0
    batch: Count = 10
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")
