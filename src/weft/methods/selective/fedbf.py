"""FedBF: federated BitFit, only bias vectors and the head are trained and averaged.

Z. Zhang et al., "FedPETuning: When Federated Learning Meets the Parameter-Efficient Tuning Methods of Pre-trained Language
Models", Findings of ACL 2023, arXiv 2212.10025 (its BitFit member). BitFit: Ben Zaken et al., ACL 2022, arXiv 2106.10199.
Code: SMILELab-FL/FedPETuning.

Every weight matrix stays as it is; clients train what is added to their outputs, the bias vectors of linear layers and norms, and
the head. The server averages them.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    Bias,
    BiasScope,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    Optim,
    Positive,
    Task,
    Weighting,
)


class FedBF(Method):
    """Defaults of the code; its uniform weights average clients of any size alike.

    Attributes:
        bias_scope: which biases: ``all`` of the encoder, ``blocks``, ``linear`` or ``norm``. The official run's saving implies
            fewer biases than ``all``; which ones is not known.
        optim: of the code, which clips gradients at the norm of 1 that transformers' training arguments have.
        add_missing: give linear layers without a bias (LLaMA, T5) a zero one instead of refusing such a backbone.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedbf",
        title="Federated BitFit: bias vectors only",
        paper="Zhang et al., Findings of ACL 2023",
        arxiv="2212.10025",
        family="selective",
        challenges=("communication efficiency", "privacy preservation"),
        evidence="code",
        deviations=(
            "All biases of the encoder are trained: the saving of the official run implies fewer, but which is not known. The "
            "learning rate is 1e-3 for any data (the code takes 5e-3 for two of its tasks)."
        ),
        sends="every bias vector of the encoder, the head, and the number of examples",
    )

    bias_scope: BiasScope = "all"
    add_missing: bool = False
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3, decay_biases=False, clip=1.0)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"bias": (Bias(self.bias_scope, self.add_missing), SHARED), "head": (task.head, SHARED)}
