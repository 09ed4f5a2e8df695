"""MFPT: one client for each language, which tune an encoder of soft words before their texts, and a head.

W. Zhao, Y. Chen, R. Lee, X. Qiu, Y. Gao, H. Fan, N. D. Lane, "Breaking Physical and Linguistic Borders: Multilingual Federated
Prompt Tuning for Low-Resource Languages", ICLR 2024, arXiv 2507.03003. Code: Ryan0v0/multilingual_borders, a README alone.

Every client puts the soft words that its copy of the encoder h makes before its texts, and trains h and the head on the frozen
backbone by cross-entropy. The server takes the mean of the encoders' weights, and not of the words that they make, which are no
linear function of them. Distances between languages explain the paper's results and enter no rule.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    Optim,
    SoftWords,
    Task,
    Weighting,
    Whole,
    WordEncoder,
    WordPlace,
)


class MFPT(Method):
    """P-tuning of a frozen encoder, averaged.

    Attributes:
        tokens: m, the soft words; 0 = the head alone. where: they stand in ``front`` of a row's first token or ``behind``
            it; ``auto`` leaves the token that the head reads where it is.
        encoder: ``mlp``, as PEFT's P-tuning has it, or ``none``: the soft words themselves are trained. hidden: width of the
            network.
        weighting: of the mean. By ``examples`` the languages with most rows have most weight; ``uniform`` favours others.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="mfpt",
        title="Multilingual federated prompt tuning: an encoder of soft words and a head, one client for each language",
        paper="Zhao et al., ICLR 2024",
        arxiv="2507.03003",
        family="prompts",
        challenges=("data heterogeneity", "privacy preservation"),
        evidence="reconstructed",
        deviations=(
            "Rebuilt from the abstract and the public reviews, which quote equations and counts. They do not tell the encoder: "
            "it is PEFT's P-tuning with 20 words and a width of 128, with the head 0.822 million numbers on XLM-RoBERTa, where a "
            "review counts 1.2. Rate, batch and local epochs are ours. The mean is weighted by examples; the equation that is "
            "quoted has no weights."
        ),
        sends="the encoder of the soft words, the head, and the number of examples",
        needs=("texts", "head"),
    )

    tokens: Whole = 20
    where: WordPlace = "auto"
    encoder: WordEncoder = "mlp"
    hidden: Count = 128
    weighting: Weighting = "examples"
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        head: Adaptation = {"head": (task.head, SHARED)}
        if not self.tokens:
            return head
        return {"prompt": (SoftWords(self.tokens, self.where, self.encoder, self.hidden), SHARED), **head}
