"""DIANA: how far a gradient lies from a shift that learns it is quantised, so that the error vanishes where all stand still.

K. Mishchenko, E. Gorbunov, M. Takáč, P. Richtárik, "Distributed Learning with Compressed Gradient Differences", arXiv 1901.09269,
algorithm 1; Optimization Methods and Software 2024. Code: burlachenkok/flpytorch.

Each round, with x what the clients of the cohort S received, Δ_i what client i's steps of SGD have made of it less x (one step:
-η g_i), and C right on average with the variance ω:

    m_i = C(Δ_i - h_i) is sent
    x ← x + h + 1/|S| Σ_{i in S} m_i                      h = 1/n Σ h_i over all clients, also those that did not take part
    h_i ← h_i + α m_i at both ends,  α = 1 / (1 + ω)
    h ← h + α/n Σ_{i in S} m_i
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from weft.contract import Count, MethodInfo, Optim, ServerState, Tuned, Update, Weighting

SHIFT = "shift"


class DIANA(Tuned):
    """h_i is that of ``--codec shift+…``, whatever codec comes behind it.

    Attributes:
        weighting: ``uniform`` as in the paper, or by ``examples``: n_k stands in the place of 1, and the sum of all in that of n.
        steps: of a client in a round; the paper has one.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="diana",
        title="Quantised differences to a learned gradient",
        paper="Mishchenko et al., Optim. Methods Softw. 2024",
        arxiv="1901.09269",
        family="full",
        challenges=("communication efficiency", "data heterogeneity"),
        deviations=(
            "What is compressed is the step of SGD and not its gradient, so that a rate that changes moves what the shifts have "
            "learnt: it is constant. There is no regulariser with a proximal step; the paper's momentum is "
            "`--server-step avgm`. What is tuned is a setting, LoRA by default."
        ),
        sends="how far its step lies from the mean of its former ones, in 2.5 bits an entry, and the number of examples",
        codec="shift+qsgd:levels=1,bucket=64",
    )
    weighting: Weighting = "uniform"
    steps: Count | None = 1
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        weights = {c.id: 1.0 if self.weighting == "uniform" else float(c.n) for c in server.clients}
        all_of, memo = sum(weights.values()), server.memo
        moved: dict[str, Tensor] = {}  # n times what h gains

        def sent() -> Iterator[Update]:
            for update in updates:
                now, before, gone = server.notes.get(update.client.id), update.shift, update.forgotten
                tensors = dict(update.tensors)
                for name, value in update.tensors.items():
                    new = now.get(f"{SHIFT}/{name}")
                    if not (isinstance(value, Tensor) and isinstance(new, Tensor)):
                        continue
                    by = new - before.get(name, 0) - gone.get(name, 0)
                    moved[name] = moved.get(name, 0) + weights[update.client.id] * by
                    tensors[name] = value - before.get(name, 0) + memo.get(f"{SHIFT}/{name}", 0) / all_of
                yield replace(update, tensors=tensors)

        server.mean(sent())
        for name, by in moved.items():
            memo[f"{SHIFT}/{name}"] = memo.get(f"{SHIFT}/{name}", 0) + by
