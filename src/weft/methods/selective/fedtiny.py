"""FedTiny: the least biased of several coarsely pruned models, whose small entries change places with those of large gradients.

H. Huang, L. Zhang, C. Sun, R. Fang, X. Yuan, D. Wu, "Distributed Pruning Towards Tiny Neural Networks in Federated Learning",
ICDCS 2023, arXiv 2212.01977. Code of the same group, of the second part: FedPruning/FedPruning.

    1  all know C masks, of the entries of largest |w| at densities that differ from layer to layer; each client evaluates its own
       loss with every one; the server takes the mask of the smallest mean loss
    2  rounds of federated averaging on the entries that are left; every ΔT-th until T_end, clients send a gradient too, of all
       entries of the pruned model, and in each tensor with n entries left
           k = ⌊α/2 (1 + cos(π t / T_end)) n⌋ of the smallest |w| go, and as many of the largest |mean gradient| come, from 0
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from weft.aggregation.pruning import cosine, erdos_renyi, largest, smallest
from weft.contract import (
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    Masked,
    MethodInfo,
    NonNegative,
    Optim,
    Pack,
    Portion,
    Positive,
    Pruned,
    Round,
    ServerState,
    Share,
    Update,
    UserError,
)
from weft.tensors.keyed import generator
from weft.tensors.masked import alive, dense

GRADIENT, LOSSES = "gradient/", "losses/candidates"


class FedTiny(Pruned):
    """Defaults of the code, where it has one.

    Attributes:
        density: share of the entries that is left of what is pruned.
        layers: how it is spread: ``erk`` and ``er`` (more of small tensors, see :func:`weft.aggregation.pruning.erdos_renyi`), or
            ``uniform``.
        candidates: C; 1 = no choice. spread: standard deviation of the logarithms of the factors that their densities differ by.
        every: ΔT. end: T_end. alpha: α.
        grow: what clients send of a gradient: ``all`` of it in every adjustment, as the code does; or ``block``, as the paper: an
            adjustment is of one block, from the last one to the first and over again, and of each of its tensors the k largest
            entries go up that are not in the model.
        gradient: of ``batch`` rows, or of the ``epoch``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedtiny",
        title="A tiny model that all have: entries of small weights change places with those of large gradients",
        paper="Huang et al., ICDCS 2023",
        arxiv="2212.01977",
        family="selective",
        challenges=("communication efficiency", "computational heterogeneity"),
        evidence="code",
        deviations=(
            "It prunes the blocks of a pretrained model by default, and not a network from the start; head, biases, norms and "
            "tables of words are not pruned. Candidates are compared by clients' losses as they are: statistics of batch "
            "normalisation, which the paper renews first, are none of a transformer's. They follow from the seed and are not "
            "sent; how they are drawn, and how many there are, is ours. What the paper keeps of gradients in a buffer of k "
            "entries is chosen from the whole."
        ),
        sends=(
            "the entries that are left of each tensor, and the number of examples; its loss with each candidate at first, and "
            "now and then a gradient of one batch or its largest entries"
        ),
    )

    density: Portion = 0.1
    layers: Literal["erk", "er", "uniform"] = "erk"
    candidates: Count = 5
    spread: NonNegative = 0.3
    every: Count = 10
    end: Count = 100
    alpha: Share = 0.2
    grow: Literal["all", "block"] = "all"
    gradient: Literal["batch", "epoch"] = "batch"
    epochs: Positive = 5.0
    batch: Count = 64
    optim: Optim = Optim("sgd", lr=1e-3, schedule="constant")

    # the masks that all know --------------------------------------------------------------------------------------------

    @property
    def sees_rows(self) -> str:
        return "takes the gradient of all of a client's rows to choose what grows"

    def start(self, server: ServerState) -> None:
        shapes = {n: tuple(dense(server.shared[n]).shape) for n in self.prunable(server.adaptation, server.bench.backbone)}
        for name, share in self._densities(shapes).items():
            if share * math.prod(shapes[name]) < 0.5:
                raise UserError(
                    f"a density of {self.density:g} leaves none of the {math.prod(shapes[name])} entries of {name}: give a "
                    "larger method.density, or method.layers = erk, which leaves small layers more."
                )
        if self.candidates == 1:
            self._take(server, 0)

    def masks(self, values: Mapping[str, Tensor], seed: int, candidate: int) -> dict[str, Tensor]:
        """One of the candidates; the first is at the densities of ``layers`` themselves."""
        shapes = {n: tuple(v.shape) for n, v in values.items()}
        wanted = self._densities(shapes)
        if candidate:
            draw = generator(seed, "candidate", candidate)
            noise = torch.randn(len(shapes), generator=draw, dtype=torch.float64).mul(self.spread).exp().tolist()
            wanted = level({n: d * f for (n, d), f in zip(wanted.items(), noise, strict=True)}, shapes, self.density)
        return {
            n: largest(v.abs(), torch.ones(v.shape, dtype=torch.bool, device=v.device), max(round(wanted[n] * v.numel()), 1))
            for n, v in values.items()
        }

    def _densities(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """Of each tensor, as ``layers`` says."""
        if self.layers == "uniform":
            return dict.fromkeys(shapes, self.density)
        return erdos_renyi(shapes, self.density, kernel=self.layers == "erk")

    def _take(self, server: ServerState, candidate: int) -> None:
        names = self.prunable(server.adaptation, server.bench.backbone)
        self.write_masks(server, self.masks({n: dense(server.shared[n]) for n in names}, server.seed, candidate))

    # rounds -------------------------------------------------------------------------------------------------------------

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        names = self.prunable(server.adaptation, server.bench.backbone)
        if not any(isinstance(server.shared[n], Masked) for n in names):
            return Round(t, "select")
        return Round(t, "adjust" if t and t % self.every == 0 and t < self.end else "train")

    def rehearsed(self) -> Self:
        return replace(super().rehearsed(), candidates=min(self.candidates, 2))

    # client -------------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == "select":
            return pack.updates(tensors=[{LOSSES: loss} for loss in self._losses(pack)])
        updates = self.fit(pack)
        if pack.round.kind != "adjust":
            return updates
        names = self._adjusted(pack.adaptations[0], pack.backbone, pack.round.index)
        steps = 1 if self.gradient == "batch" else None
        found = pack.gradients(self.objective, *names, size=self.batch, steps=steps)
        each: list[dict[str, Tensor | Masked]] = []
        for k, client in enumerate(pack.clients):
            own = (
                {n: g[k][tuple(slice(0, s) for s in pack.value(k, n).shape)].cpu() for n, g in found.items()} if client.n else {}
            )
            each.append({GRADIENT + n: self._sent(g, pack.masks[n][k].cpu(), pack.round.index) for n, g in own.items()})
        return (replace(u, tensors=u.tensors | each[i]) for u, i in _placed(pack, updates))

    def _losses(self, pack: Pack) -> list[Tensor]:
        """Each client's mean loss over its training rows with every candidate, [C]."""
        own = pack.params(*self.prunable(pack.adaptations[0], pack.backbone))
        begun = {n: v[0].detach() for n, v in own.items()}  # everybody's
        found = torch.zeros(len(pack.clients), self.candidates, dtype=pack.dtype, device=pack.device)
        counts = torch.zeros(len(pack.clients), 1, dtype=pack.dtype, device=pack.device)
        each = [self.masks(begun, pack.bench.seed, c) for c in range(self.candidates)]
        with torch.no_grad():
            for batch in pack.batches(size=self.batch, stream="select"):
                rows = batch.sizes.to(found)
                who = torch.arange(len(counts), device=pack.device) if batch.clients is None else batch.clients
                counts.index_add_(0, who, rows.unsqueeze(1))
                for c, masks in enumerate(each):
                    with pack.values({n: v * masks[n] for n, v in own.items()}):
                        found[:, c].index_add_(0, who, rows * self.objective(pack, batch))
        return list((found / counts.clamp(min=1)).cpu())

    def _sent(self, gradient: Tensor, mask: Tensor, t: int) -> Tensor | Masked:
        if self.grow == "all":
            return gradient
        count = min(self._moves(mask, t), int((~mask).sum()))
        return Masked.of(gradient, largest(gradient.abs(), ~mask, count))

    def _moves(self, mask: Tensor, t: int) -> int:
        """k: how many entries of a tensor change places."""
        return math.floor(cosine(t, self.end, self.alpha) * int(mask.sum()))

    # server -------------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        if server.round.kind == "select":
            return {LOSSES: (self.candidates,)}
        if server.round.kind != "adjust":
            return {}
        names = self._adjusted(server.adaptation, server.bench.backbone, server.round.index)
        return {GRADIENT + n: tuple(server.shared[n].shape) for n in names}

    def _adjusted(self, adaptation: Adaptation, backbone: Backbone, t: int) -> list[str]:
        """Names of the tensors that are adjusted in a round."""
        blocks = self.prunable(adaptation, backbone)
        if self.grow == "all":
            return list(blocks)
        order = sorted({-1 if b is None else b for b in blocks.values()}, reverse=True)
        turn = order[(t // self.every - 1) % len(order)]
        return [n for n, b in blocks.items() if (-1 if b is None else b) == turn]

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        found = server.average(whole_gradients(updates))
        losses = found.pop(LOSSES, None)
        if losses is not None:
            self._take(server, int(losses.argmin()))
            return
        gradients = {n.removeprefix(GRADIENT): found.pop(n) for n in list(found) if n.startswith(GRADIENT)}
        for name, mean in found.items():
            server.write(name, server.like_held(name, mean))
        masks = {}
        for name, gradient in gradients.items():
            mask = alive(server.shared[name])
            k = self._moves(mask, server.round.index)
            left = mask & ~smallest(dense(server.shared[name]).abs(), mask, k)
            masks[name] = left | largest(gradient.abs(), ~left, k)
        self.write_masks(server, masks)


def level(densities: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]], wanted: float) -> dict[str, float]:
    """Densities scaled by one factor, none above 1, so that of all entries together the wanted share is left."""
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    found, full = dict(densities), set[str]()
    while True:
        rest = wanted * sum(sizes.values()) - sum(sizes[n] for n in full)
        scale = rest / sum(found[n] * sizes[n] for n in found if n not in full) if len(full) < len(found) else 1.0
        over = {n for n in found if n not in full and scale * found[n] > 1}
        if not over:
            return {n: 1.0 if n in full else scale * d for n, d in found.items()}
        full |= over


def whole_gradients(updates: Iterable[Update]) -> Iterable[Update]:
    """Updates whose gradients are 0 where nothing of them was sent: an entry that a client does not send counts in their mean."""
    for update in updates:
        whole = {n: v.dense() for n, v in update.tensors.items() if n.startswith(GRADIENT) and isinstance(v, Masked)}
        yield replace(update, tensors=update.tensors | whole)


def _placed(pack: Pack, updates: Iterable[Update]) -> Iterable[tuple[Update, int]]:
    places = {c.id: k for k, c in enumerate(pack.clients)}
    return ((update, places[update.client.id]) for update in updates)
