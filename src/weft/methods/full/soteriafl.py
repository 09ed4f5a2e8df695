"""SoteriaFL: DIANA of gradients that have noise before they are compressed, so that no row shows in what leaves a client.

Z. Li, H. Zhao, B. Li, Y. Chi, "SoteriaFL: A Unified Framework for Private Federated Learning with Communication Compression",
NeurIPS 2022, arXiv 2206.09888, algorithm 1 with the estimator of SGD. Code: haoyuzhao123/soteriafl.

Each round, with x what the clients of the cohort S received, B a batch of b rows of client i, C_G what scales a gradient down
to norm G, and C right on average with the variance ω:

    g_i = 1/b Σ_{r in B} C_G(∇f_r(x)) + N(0, σ² I)        that is ``--privacy dp-sgd:clip=G``, whose accountant finds σ
    v_i = C(g_i - s_i) is sent
    x ← x - η (s + 1/|S| Σ_{i in S} v_i)                   s = 1/n Σ s_i over all clients, also those that did not take part
    s_i ← s_i + γ v_i at both ends,  γ = √((1 + 2ω) / (2 (1 + ω)³))
    s ← s + γ/n Σ_{i in S} v_i

C and the shifts see nothing but g_i, so that they cost no privacy.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import MethodInfo
from weft.methods.full.diana import DIANA


class SoteriaFL(DIANA):
    """s_i is that of ``--codec shift:step=soteriafl+…``, times -η; noise is that of ``--privacy``."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="soteriafl",
        title="Noisy gradients, compressed as differences to a learned one",
        paper="Li et al., NeurIPS 2022",
        arxiv="2206.09888",
        family="full",
        challenges=("privacy preservation", "communication efficiency", "data heterogeneity"),
        deviations=(
            "The gradient of each row is clipped, where the code clips that of a batch, and an accountant finds the noise, where "
            "the paper has a closed form. Each row is drawn by itself. Of the estimators there is SGD, and GD with a batch of "
            "all rows: SVRG and SAGA take differences to older gradients of the same rows, beside the steps in which rows are "
            "hidden here. What is compressed is the step and not its gradient, so that the rate is constant. What is tuned is a "
            "setting, LoRA by default."
        ),
        sends=(
            "how far its step on one batch, with noise in it if there is `--privacy`, lies from the mean of its former ones, a "
            "twentieth of the entries, and the number of examples"
        ),
        noise="it is diana with another step of its shifts, and hides no row",
        codec="shift:step=soteriafl+randk:share=0.05",
    )
