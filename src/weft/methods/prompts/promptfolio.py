"""PromptFolio: a shared and a private context, whose text features are mixed like two assets in a portfolio.

B. Pan, W. Huang, Y. Shi, "Federated Learning from Vision-Language Foundation Models: Theoretical Analysis and Method", NeurIPS
2024, arXiv 2409.19610. Code: PanBikang/PromptFolio.

logit_c(x) = s·⟨f(x)/‖f(x)‖, (1−θ)·t_c(p_g) + θ·t_c(p_l)⟩, t_c of unit length, their mixture not: it is shorter where the two
prompts disagree on a class, which tells. Hence logits = (1−θ)·L_global + θ·L_local. Both prompts are trained by its
cross-entropy; p_g is averaged, p_l never leaves its client. (The released server indexes its list of updates by client id, and
so gives clients each other's weights: the weighted mean of the paper is built.)
"""

from __future__ import annotations

from typing import ClassVar

from torch.nn.functional import normalize

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClassContext,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Place,
    Positive,
    Share,
    Task,
)


class PromptFolio(Method):
    """Defaults of the code, but for the course of the rate: its first of five epochs at 1e-5 is a linear rise here, and its
    cosine, which goes up and down over rounds and clients, falls to 0 in each round.

    Attributes:
        tokens: l, of each of the two prompts. where: the class name stands: ``end``, ``middle`` or ``front``.
        theta: θ, share of the private prompt in the text features: 0 is PromptFL, 1 is a prompt for each client alone.
        std: of the random start, which is one draw for all clients.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="promptfolio",
        title="A shared and a private text prompt for a frozen CLIP, mixed in fixed shares",
        paper="Pan et al., NeurIPS 2024",
        arxiv="2409.19610",
        family="prompts",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "The server takes the mean weighted by examples, where the released loop looks clients' prompts up by a wrong index. "
            "Each client has an optimizer of its own, whose rate rises over a fifth of a round and falls to 0 as a cosine; that "
            "of the code is one for all clients, and its cosine goes up and down. Pictures are not augmented."
        ),
        views=("personal", "global"),
        sends="the shared context tokens; the private ones stay; every client knows all class names",
        needs=("images", "two towers"),
    )

    tokens: Count = 8
    theta: Share = 0.4
    where: Place = "end"
    std: NonNegative = 0.02
    epochs: Positive = 5.0
    batch: Count = 16
    optim: Optim = Optim("sgd", lr=2e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=0.2)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        prompt = ClassContext(self.tokens, self.where, std=self.std)
        return {"context": (prompt, SHARED), "own": (prompt, PERSONAL)}

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        """The mixture, or what the shared prompt says alone (``global``)."""
        if view == "global":
            return pack(batch, use={"context": 1.0})
        ours, own = (pack.texts({part: 1.0}, batch.clients) for part in ("context", "own"))
        texts = (1 - self.theta) * ours + self.theta * own
        return Output(pack.scale * normalize(pack.images(batch), dim=-1) @ texts.mT)
