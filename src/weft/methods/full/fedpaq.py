"""FedPAQ: several local steps, a part of the clients, and quantised differences.

A. Reisizadeh, A. Mokhtari, H. Hassani, A. Jadbabaie, R. Pedarsani, "FedPAQ: A Communication-Efficient Federated Learning Method
with Periodic Averaging and Quantization", AISTATS 2020, arXiv 1909.13014, algorithm 1.

Each round every client of the cohort takes τ steps of SGD from what it received, x, to x_i and sends Q(x_i - x), where Q is right
on average (the quantiser of QSGD). The server sets x to x + 1/r Σ Q(x_i - x) over the r clients of the cohort.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import Count, MethodInfo, Optim, Tuned, Weighting


class FedPAQ(Tuned):
    """The quantiser is ``--codec qsgd``, the part of the clients ``--participation``.

    Attributes:
        weighting: ``uniform`` as in the paper, or by ``examples``.
        steps: τ; the paper tries 1 to 50.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedpaq",
        title="Quantised differences of several local steps",
        paper="Reisizadeh et al., AISTATS 2020",
        arxiv="1909.13014",
        family="full",
        challenges=("communication efficiency",),
        deviations=(
            "Levels are of the largest of 512 entries; the paper has those of the norm of the whole vector, on models of a "
            "thousand entries. The rate is constant. What is tuned is a setting, LoRA by default."
        ),
        sends="what it has changed in every tensor, in 4 bits an entry, and the number of examples",
        codec="qsgd:levels=5,bucket=512",
    )
    weighting: Weighting = "uniform"
    steps: Count | None = 10
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")
