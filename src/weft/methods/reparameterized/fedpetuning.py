"""FedPETuning: federated averaging of whichever small module a language model is tuned by.

Z. Zhang, Y. Yang, Y. Dai, Q. Wang, Y. Yu, L. Qu, Z. Xu, "FedPETuning: When Federated Learning Meets the Parameter-Efficient
Tuning Methods of Pre-trained Language Models", Findings of ACL 2023, arXiv 2212.10025. Code: SMILELab-FL/FedPETuning, whose
modules are those of OpenDelta.

Each round every client of the cohort loads the module and the head, trains them for an epoch with a fresh AdamW and schedule, and
the server averages both, all clients alike. The modules are FedLR (``tune.kind=lora``), FedAP (``bottleneck``, two adapters in
each block), FedPF (``prefix``, made by an MLP that is trained and averaged in its place) and FedBF (``bias``, see ``fedbf``).
The code tests the round that does best on the server's validation rows: of a run that is its ``best_by_validation``, and
``keep = "best"`` exports that model.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import Count, MethodInfo, Optim, Positive, Tune, Tuned, Weighting


class FedPETuning(Tuned):
    """Defaults of the code; its uniform weights average clients of any size alike.

    Attributes:
        tune: what is trained; the settings of each kind are those of the code on a RoBERTa-base of 768 features: LoRA of rank 8
            and α = 8 at queries and values, adapters of width 16, 16 prefix tokens from an MLP of width 512.
        optim: of the code, which clips gradients at the norm of 1 that transformers' training arguments have.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedpetuning",
        title="LoRA, adapters, prefixes or biases of a language model",
        paper="Zhang et al., Findings of ACL 2023",
        arxiv="2212.10025",
        family="reparameterized",
        challenges=("communication efficiency", "privacy preservation"),
        evidence="code",
        deviations=(
            "The learning rate is 1e-3 for any module and any data (the code takes 1e-4 to 5e-3). Adapters follow Houlsby et al. "
            "into the sublayers, with start values of a standard deviation of 0.02; the code's library puts them behind the "
            "norms, with 0.01."
        ),
        sends="both LoRA factors of every site (or the module that is trained instead), the head, and the number of examples",
    )

    tune: Tune = Tune(
        "lora", rank=8, alpha=8.0, at="q,v", reduction=48, placement="sublayers", activation="gelu_new", tokens=16, hidden=512
    )
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3, decay_biases=False, clip=1.0)
