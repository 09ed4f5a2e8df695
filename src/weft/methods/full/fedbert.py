"""FedBERT: masked language modelling by split learning; clients hold embeddings and head, the server holds the blocks.

Y. Tian, Y. Wan, L. Lyu, D. Yao, H. Jin, L. Sun, "FedBERT: When Federated Learning Meets Pre-Training", ACM Transactions on
Intelligent Systems and Technology 13(4), 2022, doi 10.1145/3510033.

A client has the embeddings E and the masked-language head H, the server the blocks T between them. In a step

    client   h = E(x), up goes h; the server gives u = T(h)
    client   the loss of H(u) over the hidden tokens, up goes its gradient by u; the server gives that by h
    client   one step of Adam on E and H; the server: one on T

When a round is closed, E and H are averaged, each client weighing the same. All in all it is the step of the whole model, in two
places: 4·b·T·d numbers travel in each of them, where federated averaging sends the model once a round.

**It keeps nothing secret by itself.** Raw texts and labels stay at the clients, but whoever knows the table of embeddings, as the
server does, reads the tokens off h by looking for the nearest row: all of them, without noise (`weft audit RUN --attack tokens`).

Optimizers go on from round to round: a client's moments stay while its weights are replaced by their mean, as in the published
code, which restores its state from a file; the schedule is one over all rounds. Each optimizer clips for itself, if told to.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from weft.contract import (
    GIVEN,
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Count,
    MethodInfo,
    Optim,
    Positive,
    SplitMethod,
    Task,
    UserError,
    Weighting,
    Weights,
)

Averaged = Literal["ends", "embeddings", "all", "none"]


class FedBERT(SplitMethod):
    """Defaults of the published scripts, but for what is in ``deviations``.

    Attributes:
        average: of what the mean is taken when a round is closed: of both ``ends``, of the ``embeddings`` (with what is tied to
            them) alone, or of ``none``; ``all``: of both ends, and of the blocks, which the server then has for each client.
        epochs: between two means; the scripts have 5 or 50.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedbert",
        title="Split learning of a masked language model: embeddings and head at clients, blocks at the server",
        paper="Tian et al., ACM TIST 2022",
        family="full",
        challenges=("computational heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "It goes on from the model that it is given instead of random weights. Rows are one batch of 16, where the scripts "
            "accumulate 16 of them before a step; half precision is not used. The order in which the server serves clients is "
            "known from the abstract. The published code averages embeddings without the head, by which the two are silently "
            "untied; here what is tied stays one tensor. Starting a client from the weights that the one before it has left is "
            "not offered. Which tokens are hidden is drawn once for each row."
        ),
        sends=(
            "activations and gradients of every batch, from which the tokens of its texts can be read; after its steps "
            "embeddings and head"
        ),
        needs=("hidden words", "separate blocks", "split"),
    )

    average: Averaged = "ends"
    epochs: Positive = 5.0
    batch: Count = 16
    weighting: Weighting = "uniform"
    optim: Optim = Optim("adamw", lr=5e-4, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-6, warmup=0.08)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies and self.order == "sequential":
            raise UserError(
                "with average=all every client has blocks of its own at the server, so that there is no order in which these are "
                "trained: leave method.order out."
            )

    @property
    def copies(self) -> bool:
        return self.average == "all"

    @property
    def views(self) -> tuple[str, ...]:
        return ("global",) if self.average in ("ends", "all") else ("personal",)

    def ends(self, backbone: Backbone, task: Task) -> Adaptation:
        cut = backbone.cut
        return {
            "embeddings": (Weights(",".join(cut.before)), PERSONAL if self.average == "none" else SHARED),
            "lm_head": (Weights(",".join(cut.behind)), SHARED if self.average in ("ends", "all") else PERSONAL),
        }

    def body(self, backbone: Backbone, task: Task) -> Adaptation:
        return {"body": (Weights(",".join(backbone.cut.blocks)), GIVEN)}
