"""PromptFL: clients learn one context of soft tokens around the class names of a frozen CLIP.

T. Guo, S. Guo, J. Wang, X. Tang, W. Xu, "PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models",
IEEE TMC 23(5), 2024, arXiv 2208.11625. Code: PEILab-Federated-Learning/PromptFL.

Every client computes the text features of all class names through the context P, compares them with its images' features by
cosine times CLIP's own scale, and trains P alone by cross-entropy; the server takes the plain mean of the P. (The released loop
appends references to one model's tensors and so keeps the last client's P: the paper's mean is built.) Pictures are not
augmented, so that their features are computed once.
"""

from __future__ import annotations

from typing import ClassVar

from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClassContext,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Place,
    Positive,
    Task,
    UserError,
    Weighting,
)


class PromptFL(Method):
    """Defaults of the code, but for the course of the rate: its first of five epochs at a hundredth of the rate is a linear rise
    here, and its cosine, which ends a first round at 0.35 of the rate and is never reset, falls to 0 in each round.

    Attributes:
        tokens: p. where: the class name stands: ``end``, ``middle`` or ``front``. per_class: a context for each class.
        phrase: words that the context starts at (``a photo of a``); p is then their number. std: of the random start otherwise.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="promptfl",
        title="Federated CoOp: one shared context of soft text tokens for a frozen CLIP",
        paper="Guo et al., IEEE TMC 2024",
        arxiv="2208.11625",
        family="prompts",
        challenges=("communication efficiency",),
        evidence="code",
        deviations=(
            "The code's first of five epochs at a hundredth of the rate is a linear rise, and the cosine falls to 0, anew in "
            "each round: the code's spans five epochs from the second on, so that a first round ends at 0.35 of the rate, and "
            "then goes up and down over rounds and clients, which share it. The last, smaller batch of an epoch is trained on, "
            "which the code drops, so that every row counts. Pictures are not augmented. The contexts of all clients are "
            "averaged, where the released loop keeps the last client's."
        ),
        sends="the context tokens; every client knows all class names",
        needs=("images", "two towers"),
    )

    tokens: Count = 16
    where: Place = "end"
    per_class: bool = False
    phrase: str = ""
    std: NonNegative = 0.02
    weighting: Weighting = "uniform"
    epochs: Positive = 5.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phrase and self.tokens != PromptFL.tokens:
            raise UserError(
                f'a context has as many tokens as its phrase "{self.phrase}", and tokens is {self.tokens}: leave one of them out.'
            )

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"context": (ClassContext(self.tokens, self.where, self.per_class, self.phrase, self.std), SHARED)}
