"""PF2LoRA: a common LoRA is trained for what each client's small own one becomes of it in one step, by second derivatives.

J. Hao, Y. Wu, A. Payani, M. Lee, M. Liu, "Personalized Federated Fine-tuning for Heterogeneous Data: An Automatic Rank Learning
Approach via Two-Level LoRA", arXiv 2503.03920.

With x the common factors and y a client's own, W0 + B A + D C, one local iteration on two batches π and ξ is

    y⁺ ← y - α ∇_y f(x, y; π)
    x ← optimizer's step along d/dx f(x, y⁺(x); ξ)       through y⁺: ∇_x f - α ∇²_xy f(x, y; π) ∇_y f(x, y⁺; ξ)
    y ← y⁺

x is averaged; y stays. The sum of both is of a rank between r - r̃ and r + r̃ at each client.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import nullcontext
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weft.contract import (
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Task,
    Update,
    UserError,
    Weighting,
)


class PF2LoRA(Method):
    """What reviews of the paper tell of its settings, whose text was not read; α is our choice.

    Attributes:
        rank: r. private: r̃, below r.
        alpha: of both; the scale is α/r for both, too.
        lower: of y: plain SGD, of which the learning rate is the α of the equations.
        order: ``second``: the derivative as above; ``first``: without the part that goes through y⁺, and all that a language
            model can do, whose loss has no second derivative here.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
        weighting: ``uniform`` as in the paper's objective, or by ``examples``.
        steps: local iterations of a round.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pf2lora",
        title="A common LoRA under a small personal one, by a bilevel step",
        paper="Hao et al., arXiv 2025",
        arxiv="2503.03920",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "The algorithm is put together from what reviews quote of it. Moments of the upper optimizer begin anew in each "
            "round. The head is trained with the common LoRA and averaged."
        ),
        views=("personal", "global"),
        needs=("own steps",),
        sends="both factors of the common LoRA, the head, and the number of examples",
    )

    rank: Count = 8
    private: Count = 2
    alpha: Positive = 16.0
    lower: Optim = Optim("sgd", lr=0.05, schedule="constant")
    order: Literal["second", "first"] = "second"
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    steps: Count | None = 10
    batch: Count = 16
    optim: Optim = Optim("adamw", lr=1e-3, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "takes a step within each step, on other rows"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if self.private >= self.rank:
            raise UserError(
                f"the own LoRA of {self.private} ranks is no smaller than the common one of {self.rank}: choose a smaller "
                "method.private."
            )
        if self.lower.kind != "sgd" or self.lower.momentum or self.lower.weight_decay or self.lower.clip is not None:
            raise UserError("the lower step is differentiated, and has to be plain SGD: set nothing but method.lower.lr.")
        if self.order == "second" and backbone.vocabulary is not None:
            raise UserError(
                f'the loss of the language model "{backbone.name}" has no second derivative here: set method.order=first.'
            )
        scale = self.alpha / self.rank
        return {
            "lora": (LoRA(self.rank, self.alpha, self.sites), SHARED),
            "mine": (LoRA(self.private, scale * self.private, self.sites), PERSONAL),
            "head": (task.head, SHARED),
        }

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"lora": 1.0} if view == "global" else None)

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        upper = pack.optimizer("lora", "head", settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
        own = {n: v.detach().clone() for n, v in pack.params("mine").items()}
        streams = (pack.batches(self.epochs, self.steps, self.batch, stream=s) for s in ("main", "lower"))
        for batch, other in zip(*streams, strict=True):
            moved: dict[str, Tensor] = {}
            objective = functools.partial(self._upper, other=other, own=own, moved=moved)
            # fused kernels of attention have no second derivative
            with sdpa_kernel(SDPBackend.MATH) if self.order == "second" else nullcontext():
                pack.report(batch, pack.step(upper, objective, batch))
            own = {n: v.detach() for n, v in moved.items()}
        pack.tensors.update(own)
        return pack.updates()

    def _upper(self, pack: Pack, batch: Batch, other: Batch, own: dict[str, Tensor], moved: dict[str, Tensor]) -> Tensor:
        """f(x, y⁺(x); ξ), and y⁺ into ``moved``."""
        moved |= self._lower(pack, other, own)
        with pack.values(moved):
            return self.objective(pack, batch)

    def _lower(self, pack: Pack, batch: Batch, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """y⁺ as a function of x."""
        leaves = {n: v.detach().requires_grad_(True) for n, v in own.items()}
        second = self.order == "second"
        with pack.values(leaves):
            loss = self.objective(pack, batch).sum()
        slopes = pack.slopes(loss, leaves, again=second)
        return {n: v.detach() if (g := slopes[n]) is None else v.detach() - self.lower.lr * g for n, v in leaves.items()}
