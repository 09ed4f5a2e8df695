"""FedPEFT: federated averaging of a small named part of a pre-trained vision transformer, by default its biases.

G. Sun, U. Khalid, M. Mendieta, T. Yang, P. Wang, M. Lee, C. Chen, "Exploring Parameter-Efficient Fine-Tuning to Enable Foundation
Models in Federated Learning", arXiv 2210.01708 (v3: "Conquering the Communication Constraints to Enable Large Pre-Trained Models
in Federated Learning").

The backbone is with every client before the first round and stays as it is. What is trained and averaged, weighted by example
counts, is the head and one of: all biases of the backbone (``tune.kind=bias``), an adapter in each block (``bottleneck``), tokens
of its own in front of each block (``tokens``), nothing else (``head``).
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import Count, MethodInfo, Optim, Positive, Tune, Tuned


class FedPEFT(Tuned):
    """The paper compares what is tuned; biases cost least for what they reach.

    Attributes:
        tune: what is trained; the settings of each kind are those of the paper on a ViT-B of 768 features: adapters of width 8
            inside the feed-forward sublayer, whose second matrix starts at zero, and 10 new tokens at every block.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedpeft-bias",
        title="Biases of a vision transformer, or another small part of it",
        paper="Sun et al., 2022",
        arxiv="2210.01708",
        family="selective",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="paper",
        deviations=(
            "The learning rate, for which the paper looks anew for each kind of part, and the batch size are ours; adapters have "
            "ReLU."
        ),
        sends="every bias vector of the encoder (or the part that is trained instead), the head, and the number of examples",
    )

    tune: Tune = Tune("bias", reduction=96, placement="ffn", up_std=0.0, tokens=10, deep=True)
    epochs: Positive = 10.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")
