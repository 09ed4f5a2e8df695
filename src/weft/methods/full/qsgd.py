"""QSGD: parallel stochastic gradient descent whose gradients go up as a few bits an entry.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding", NeurIPS 2017, arXiv 1610.02132.

Each round every client takes one step of SGD from what it received, x, and sends Q(x_i - x) = -η Q(g_i): in buckets of entries
with a common norm N, an entry v becomes N · sign(v) · l / s, where l is s|v|/N rounded up or down at random so that it is right
on average. The server takes the mean.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import Count, MethodInfo, Optim, Tuned, Weighting


class QSGD(Tuned):
    """One step a round; the quantiser is ``--codec qsgd``, see its settings there.

    Attributes:
        steps: of a client in a round; more than one is FedPAQ.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="qsgd",
        title="One step a round, as a few bits an entry",
        paper="Alistarh et al., NeurIPS 2017",
        arxiv="1610.02132",
        family="full",
        challenges=("communication efficiency",),
        deviations=(
            "Levels are of the largest entry of a bucket, as in the paper's runs, not of its Euclidean norm, as in its theorems. "
            "They take as many bits each; `--codec qsgd:levels=7+entropy` codes them, where the paper has Elias' code. What is "
            "tuned is a setting, LoRA by default."
        ),
        sends="its gradient on one batch in 4 bits an entry, and the number of examples",
        codec="qsgd:levels=7,bucket=512",
    )
    weighting: Weighting = "uniform"
    steps: Count | None = 1
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")
