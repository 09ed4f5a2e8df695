"""PruneFL: entries are pruned and grown again so that the loss expected to fall in a round, over the round's time, is largest.

Y. Jiang, S. Wang, V. Valls, B. J. Ko, W.-H. Lee, K. K. Leung, L. Tassiulas, "Model Pruning Enables Efficient Federated Learning
on Edge Devices", IEEE Transactions on Neural Networks and Learning Systems 2022, arXiv 1909.12326. Code: jiangyuang/PruneFL.

One client prunes first, on some batches of its own rows. Then, in federated rounds:

    client   a few steps of SGD on the entries that are left; G = the sum of the steps' gradients, of all entries;  Q += n G²
    server   the mean of the clients' entries
    now and then:
        the share p of each tensor's entries with the smallest |w| is let go; Γ = Σ Q over what is left, T = c + Σ t over it
        of all other entries those come (back) whose Q/t is above Γ/T, the largest first, each of them adding to Γ and T
        what comes anew begins at 0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from weft.aggregation.pruning import smallest, worth_their_time
from weft.contract import (
    PERSONAL,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    Masked,
    MethodInfo,
    NonNegative,
    Optim,
    Pack,
    Positive,
    Pruned,
    Round,
    ServerState,
    Share,
    Task,
    Update,
    Values,
    Weighting,
    Whole,
    named,
)
from weft.tensors.masked import alive, dense

SEEN, GAIN = "seen/values/", "gain/"

PATIENCE, CHANGED = 5, 0.1
"""The first stage ends when so many adjustments in a row have changed the density by less than this share of it."""


class PruneFL(Pruned):
    """Defaults of the code's CIFAR-10 runs (VGG-11).

    Attributes:
        every: rounds from one adjustment to the next; steps in the first stage.
        decrease: p at first. half_life: rounds in which it halves.
        initial: steps of the first stage, at most; 0 leaves it out. initial_batches: of rows, which it goes over again and again.
        communication: seconds that an entry takes to go up and down. computation: that it takes in a local step. constant: c, of
            a round beside its entries. An entry of any tensor takes the same: a linear layer does the same with each of its own.
        max_density: share of all entries that may be left after an adjustment, at most.
        steps: local ones in a round.
        weighting: ``uniform``: the code weighs by rows worked through, as many for each client that has enough of them; or
            ``examples``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="prunefl",
        title="Entries are kept by what they are expected to gain in the time that they take",
        paper="Jiang et al., TNNLS 2022",
        arxiv="1909.12326",
        family="selective",
        challenges=("communication efficiency", "computational heterogeneity"),
        evidence="code",
        deviations=(
            "It prunes the blocks of a pretrained model by default, and not a network from the start; head, biases, norms and "
            "tables of words are not pruned. An entry takes the same time in any tensor, where the code has a measured one for "
            "each layer. The first stage is one exchange with the client that has the most rows, and its first adjustment "
            "waits for no training accuracy. Gains go up in the rounds of an adjustment, from the clients that take part in it."
        ),
        sends=(
            "the entries that are left of each tensor, and the number of examples; now and then squares of summed gradients, of "
            "all entries"
        ),
    )

    every: Count = 50
    decrease: Share = 0.3
    half_life: Positive = 10000.0
    initial: Whole = 1000
    initial_batches: Count = 10
    communication: NonNegative = 5.56e-6
    computation: Positive = 1e-6
    constant: NonNegative = 86.85
    max_density: Share = 1.0
    weighting: Weighting = "uniform"
    steps: Count | None = 5
    batch: Count = 20
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "begins with one client that prunes by batches of its own rows" if self.initial else ""

    def rehearsed(self) -> Self:
        return replace(super().rehearsed(), initial=min(self.initial, 1))

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        tuned = super().adapt(backbone, task, client)
        shapes = tuple((n, tuple(init.shape)) for n, init, _ in named(tuned, backbone))
        return {**tuned, "seen": (Values(shapes), PERSONAL)}

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        if t == 0 and self.initial:
            return Round(t, "initial", [max(server.clients, key=lambda c: c.n).id])
        return Round(t, "adjust" if t and t % self.every == 0 else "train")

    # client -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == "initial":
            return self._initial(pack)
        return self._round(pack)

    def _round(self, pack: Pack) -> Iterable[Update]:
        names = [n for n in pack.tensors if not n.startswith(SEEN)]
        sums = {n: torch.zeros_like(pack.tensors[n]) for n in names}
        rows = torch.zeros(len(pack.clients), device=pack.device)

        def add(slopes: Mapping[str, Tensor]) -> None:
            for name, slope in slopes.items():
                sums[name] += slope

        if pack.has_work():
            optimizer = pack.optimizer(*names, settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
            for batch in pack.batches(self.epochs, self.steps, self.batch):
                rows += batch_rows(pack, batch)
                pack.report(batch, pack.step(optimizer, self.objective, batch, watch=add))
        for name, total in sums.items():
            each = rows.view(-1, *[1] * (total.dim() - 1)).to(total)
            pack.tensors[SEEN + name] = pack.tensors[SEEN + name] + each * total.square()
        gains: list[dict[str, Tensor]] = [{} for _ in pack.clients]
        if pack.round.kind == "adjust":
            for name in names:
                for k, mine in enumerate(gains):
                    mine[GAIN + name] = pack.value(k, SEEN + name)
                pack.tensors[SEEN + name] = torch.zeros_like(pack.tensors[SEEN + name])
        return pack.updates(tensors=gains)

    def _initial(self, pack: Pack) -> Iterable[Update]:
        """One client prunes by itself: the same adjustments, on squares of each step's gradient."""
        names = list(self.prunable(pack.adaptations[0], pack.backbone))
        masks = {n: torch.ones_like(pack.tensors[n], dtype=torch.bool) for n in names}
        if not pack.has_work():
            return pack.updates()
        rows = list(pack.batches(steps=self.initial_batches, size=self.batch))
        optimizer = pack.optimizer("*", settings=self.optim, total=self.initial)
        squares: dict[str, Tensor] = {}
        before, still = 1.0, 0

        def add(slopes: Mapping[str, Tensor]) -> None:
            for name, slope in slopes.items():
                squares[name] = squares.get(name, 0.0) + slope.square()

        for step in range(1, self.initial + 1):
            batch = rows[step % len(rows)]
            pack.report(batch, pack.step(optimizer, self.objective, batch, entries=masks, watch=add))
            if step % self.every and step != self.initial:
                continue
            values = {n: pack.tensors[n].detach()[0] for n in names}
            found = self.adjusted(
                values, {n: m[0] for n, m in masks.items()}, {n: s[0] for n, s in squares.items()}, self.decrease
            )
            masks = {n: m.unsqueeze(0) for n, m in found.items()}
            squares.clear()
            with torch.no_grad():
                for name, mask in masks.items():
                    pack.tensors[name] *= mask
            now = density(found)
            still = still + 1 if abs(now - before) < CHANGED * before else 0
            before = now
            if still == PATIENCE:
                break
        return pack.updates(masks=masks)

    # server -----------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        if server.round.kind != "adjust":
            return {}
        bench = server.bench.of(client)
        tuned = super().adapt(bench.backbone, bench.task, client)
        return {GAIN + n: tuple(init.shape) for n, init, _ in named(tuned, bench.backbone)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        if server.round.kind == "initial":
            for update in updates:
                self._take(server, update)
            return

        def weights(update: Update) -> dict[str, float]:
            own = 1.0 if self.weighting == "uniform" else update.weight
            return {n: 1.0 if n.startswith(GAIN) else own for n in update.tensors}  # these have been weighed by clients

        found = server.average(updates, weight=weights)
        for name in [n for n in found if not n.startswith(GAIN)]:
            server.write(name, server.like_held(name, found.pop(name)))
        if found:
            self._adjust(server, {n.removeprefix(GAIN): gain for n, gain in found.items()})

    def _take(self, server: ServerState, update: Update) -> None:
        """Go on with what the first client has made."""
        masked = self.prunable(server.adaptation, server.bench.backbone)
        for name, value in update.tensors.items():
            whole = dense(value).clone()  # it is the update's own
            server.write(name, Masked.of(whole, alive(value)) if name in masked else whole)

    def _adjust(self, server: ServerState, gains: Mapping[str, Tensor]) -> None:
        names = [n for n in self.prunable(server.adaptation, server.bench.backbone) if n in gains]
        share = self.decrease * 0.5 ** (server.round.index / self.half_life)
        values, masks = ({n: of(server.shared[n]) for n in names} for of in (dense, alive))
        self.write_masks(server, self.adjusted(values, masks, gains, share))

    def adjusted(
        self, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], gains: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """The masks after an adjustment.

        Args:
            values, masks: of the tensors that may be pruned. gains: of those and of all others that are trained. share: p.
        """
        kept = {n: m & ~smallest(values[n].abs(), m, int(share * int(m.sum()))) for n, m in masks.items()}
        each = self.communication + (self.steps or 1) * self.computation
        gain = sum(float((gains[n] * kept.get(n, 1.0)).sum(dtype=torch.float64)) for n in gains)
        time = self.constant + each * sum(int(m.sum()) for m in kept.values())
        most = int(self.max_density * sum(m.numel() for m in kept.values()))
        mine = {n: gains[n] for n in kept}
        return worth_their_time(mine, kept, dict.fromkeys(kept, each), gain, time, most)


def batch_rows(pack: Pack, batch: Batch) -> Tensor:
    """[K] rows of each client in a step."""
    counts = batch.sizes.to(torch.float32)
    found = torch.zeros(len(pack.clients), device=pack.device)
    found[slice(None) if batch.clients is None else batch.clients] = counts
    return found


def density(masks: Mapping[str, Tensor]) -> float:
    """The share of all entries that is left."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
