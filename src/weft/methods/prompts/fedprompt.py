"""FedPrompt: clients tune soft words before their texts and nothing else; a frozen masked language model fills in the answer.

H. Zhao, W. Du, F. Li, P. Li, G. Liu, "FedPrompt: Communication-Efficient and Privacy-Preserving Prompt Tuning in Federated
Learning", ICASSP 2023, arXiv 2208.12268.

A text stands in a template with a mask, behind the soft words P; its class is the one whose label word the frozen model holds
most likely there. Every client trains its copy of P by cross-entropy over the label words, and the server takes their mean by
examples. Template and label words are those of the run (``--template``, ``--label-words``); no head is trained.
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
    UserError,
    WordEncoder,
    WordPlace,
)


class FedPrompt(Method):
    """Defaults of the paper for BERT and RoBERTa.

    Attributes:
        tokens: m, the soft words. where: they stand ``behind`` the first token of a row ([CLS]) or in ``front`` of it.
        encoder: ``mlp``: P is made by a network, whose weights are what is trained and sent (the paper's variant with P-tuning).
        hidden: width of that network. phrase: words whose embeddings P starts at, instead of words drawn at random.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedprompt",
        title="Soft words before a text, tuned and averaged; a frozen masked language model fills in the class",
        paper="Zhao et al., ICASSP 2023",
        arxiv="2208.12268",
        family="prompts",
        challenges=("communication efficiency", "privacy preservation"),
        evidence="paper",
        deviations=(
            "A turn is one local epoch, where the paper takes up to 1,000 local steps, and batches have 32 rows, of which the "
            "paper gives no number. The start of P and its place before or behind [CLS] are not given either: it starts at "
            "embeddings of words drawn at random, behind [CLS]. T5, which the paper trains with Adafactor, is not built, nor "
            "prefix tuning, nor Laplace noise of parameters, for which the paper gives neither bound nor scale."
        ),
        sends="the soft words, and the number of examples",
        needs=("texts", "label words"),
    )

    tokens: Count = 20
    where: WordPlace = "behind"
    encoder: WordEncoder = "none"
    hidden: Count = 128
    phrase: str = ""
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=0.3, weight_decay=0.0, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.heads:
            raise UserError(
                f'backbone "{backbone.name}" has a head, and fedprompt trains none: use --task fill with a masked language '
                "model, such as --model docs-mlm."
            )
        return {"prompt": (SoftWords(self.tokens, self.where, self.encoder, self.hidden, self.phrase), SHARED)}
