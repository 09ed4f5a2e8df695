"""SWARM parallelism: a model whose stages lie at peers that come and go. It is a compute substrate, and no federated method."""

from __future__ import annotations

from typing import ClassVar

from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    Boundary,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Positive,
    Task,
    Whole,
)


class SwarmParallelism(Method):
    """LoRA and head by plain training on all rows together, of which hidden states and their gradients cross boundaries in int8.

    M. Ryabinin, T. Dettmers, M. Diskin, A. Borzunov, ICML 2023, arXiv 2301.11913. A peer can read rows out of the hidden states
    that it is sent: it supplies compute to those who trust it, and protects nobody. Steps are synchronous, so that who computes a
    stage, and how often it is tried, changes no number: ``--peers`` plays that on a clock of its own (:mod:`weft.devices.swarm`).

    Attributes:
        rank, alpha, sites: of LoRA. stages: that the blocks are cut into. block: numbers that share a scale in int8 at a
            boundary; 0: they cross as they are, and it is LoRA trained in one place.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="swarm-parallelism",
        title="Stages of one model at unreliable peers: a compute substrate, and no federated method",
        paper="Ryabinin et al., ICML 2023",
        arxiv="2301.11913",
        family="reparameterized",
        challenges=("computational heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "It is played as the baseline central: all rows lie in one place, and nothing is kept from anybody. The paper trains "
            "a whole model from the start, here LoRA and a head are trained on a frozen one. Peers are simulated: what crosses a "
            "boundary is really rounded to int8, in blocks as in the released code; who computes it, when, and how often, is "
            "played on a clock. Rebalancing is as the paper is understood, for the code has none. The first stage has the "
            "embeddings and the last one head and loss, where the paper leaves both to the trainers. Settings of LoRA are those "
            "of fedit."
        ),
        sends="nothing to a server; hidden states and their gradients to peers, which can read rows out of them",
        baseline="central",
    )

    rank: Count = 16
    alpha: Positive = 16.0
    sites: str = "q"
    stages: Count = 2
    block: Whole = 64
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=3e-4, clip=1.0)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {
            "boundary": (Boundary(self.stages, self.block), GIVEN),
            "lora": (LoRA(self.rank, self.alpha, self.sites), SHARED),
            "head": (task.head, SHARED),
        }
