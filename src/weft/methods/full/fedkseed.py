"""FedKSeed: K random directions that everybody can draw, and one number for each; the model never travels.

Z. Qin, D. Chen, B. Qian, B. Ding, Y. Li, S. Deng, "Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes", ICML 2024, arXiv 2312.06353. Code: alibaba/FederatedScope, branch FedKSeed.

A step draws one of K seeds, j, and measures how the loss changes along its direction z_j ~ N(0, I) in two forward passes:
g = (L(w + ε z_j) - L(w - ε z_j)) / 2ε, w ← w - η g z_j. Whoever knows a_j = Σ g, the scalars that a seed has gathered, has the
model: w_t = w_0 - η Σ_j a_j z_j. So a_1 … a_K go down, and up go the scalars of a client's steps: which seeds they belong to
follows from the run's seed, the round and the client. The server adds their mean over the clients to a_1 … a_K, by which its
model is the mean of theirs. FedKSeed-Pro draws a seed the more often, the larger its scalars have been.

Everybody makes the model anew from w_0 and a_1 … a_K, in the order of j. To go on from the model of the round before would be
quicker, but sums in another order have other bits, and whoever was away would hold another model than the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from weft.contract import (
    GIVEN,
    SHARED,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Scope,
    ServerState,
    Task,
    Tuned,
    Update,
    UserError,
    Values,
)
from weft.tensors.directions import combination, direction

SUMS, PI, SCALARS = "seeds/values/sums", "seeds/values/pi", "scalars"
LARGEST = 1000.0
"""That a scalar counts for in FedKSeed-Pro."""

Shapes = Mapping[str, tuple[int, ...]]


class FedKSeed(Tuned):
    """Settings of the code, but for what is tuned and the rate that goes with it.

    Attributes:
        seeds: K, the directions along which all steps of all rounds are taken.
        epsilon: ε; the two losses of a step are those at w ± ε z.
        largest_gap: a step whose two losses differ by more is left out; None = all are taken whose losses are finite.
        pro: FedKSeed-Pro: seeds are drawn by how large their scalars have been.
        upload: ``scalars``, one for each step, or ``sums``, one for each seed, which robust rules can be used on.
        steps: τ. batch: of a step; the authors take more than one row to be unsafe.
        optim: plain steps at a constant rate; nothing else can be made anew from sums.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedkseed",
        title="Steps along K random directions that everybody can draw: scalars travel, and no model",
        paper="Qin et al., ICML 2024",
        arxiv="2312.06353",
        family="full",
        challenges=("communication efficiency",),
        evidence="code",
        deviations=(
            "LoRA and the head are tuned, unless `tune.kind` says otherwise, at a rate for them: the paper tunes the whole "
            "model, in the code's examples at 3e-7. The seed of a step does not travel, but follows from the run's seed, the "
            "round and the client. Entries of a direction are quantiles of the normal distribution, one of 65,536, so that "
            "they have the same bits on every machine. Weight decay is refused: the code decays once for each step, but once "
            "for each seed where it makes the model anew, and comes to another one. In FedKSeed-Pro all clients of a round "
            "draw by the probabilities that it began with; the code's clients write into one history, one after another."
        ),
        needs=("own steps", "no gradients"),
        sends=(
            "how steep its loss is along the direction of each step, and the number of examples; whoever knows the directions "
            "can make its whole local model of that"
        ),
    )
    shares: ClassVar[Scope] = TEMPORARY
    demands: ClassVar[tuple[str, ...]] = ("*",)

    seeds: Count = 4096
    epsilon: Positive = 5e-4
    largest_gap: Positive | None = None
    pro: bool = False
    upload: Literal["scalars", "sums"] = "scalars"
    steps: Count | None = 200
    batch: Count = 1
    optim: Optim = Optim("sgd", lr=1e-4, schedule="constant")

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = Optim("sgd", schedule="constant")
        names = ("kind", "schedule", "warmup", "momentum", "weight_decay", "prox", "clip")
        odd = [n for n in names if getattr(self.optim, n) != getattr(plain, n)]
        if odd:
            raise UserError(
                "FedKSeed: the model is made anew from how far each direction was gone, which says nothing of when, so that all "
                "steps have to be plain ones at one rate: set "
                f"{', '.join(f'optim.{n} = {str(getattr(plain, n)).lower()}' for n in odd)}."
            )
        if self.pro and self.upload == "sums":
            raise UserError("FedKSeed: pro has to know the scalar of each step: leave upload at scalars.")

    @property
    def sums(self) -> bool:
        return self.upload == "sums"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        scopes = {"sums": SHARED if self.sums else GIVEN} | ({"pi": GIVEN} if self.pro else {})
        seeds = Values(tuple((role, (self.seeds,)) for role in scopes))
        return {**super().adapt(backbone, task, client), "seeds": (seeds, scopes)}

    # the model --------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        """w = w_0 - η Σ_j a_j z_j."""
        sums = pack.tensors[SUMS].cpu().double().numpy()
        if sums.any():
            shapes = shapes_of(pack)
            size = sum(map(math.prod, shapes.values()))
            moves = [moved(pack.bench.seed, (self.optim.lr * own).tobytes(), size, pack.dtype).to(pack.device) for own in sums]
            for name, *own in zip(shapes, *(split(move.unsqueeze(0), shapes).values() for move in moves), strict=True):
                pack.tensors[name] = pack.tensors[name] - torch.cat(own)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={part: 1.0 for part in pack.adaptations[0] if part != "seeds"})

    # client -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def train(self, pack: Pack) -> Iterable[Update]:
        shapes, people = shapes_of(pack), range(len(pack.clients))
        w = torch.cat([pack.tensors[n].flatten(1) for n in shapes], 1)  # [K, n]
        pack.tensors.update(split(w, shapes))  # the same memory: what is tuned may be a whole model
        streams = pack.generators("seeds")
        edges = [edges_of(pi, self.seeds) for pi in pack.tensors.get(PI, [None] * len(people))]
        drawn: list[list[int]] = [[] for _ in people]
        scalars: list[list[float]] = [[] for _ in people]

        def loss_at(point: Tensor, batch: Batch) -> Tensor:
            with pack.values(split(point, shapes)):
                return self.objective(pack, batch)

        for batch in pack.batches(self.epochs, self.steps, self.batch):
            here = list(people) if batch.clients is None else batch.clients.tolist()
            z = torch.zeros(tuple(w.shape))  # 0 for a client that is not in the batch
            for k in here:
                drawn[k].append(int(seeds_at(edges[k], streams[k], 1)))
                z[k] = torch.from_numpy(direction(pack.bench.seed, drawn[k][-1], w.shape[1]))
            z = z.to(pack.device, pack.dtype)
            up, down = (loss_at(torch.add(w, z, alpha=far), batch) for far in (self.epsilon, -self.epsilon))  # one at a time
            g = w.new_zeros(len(people)).index_add_(0, torch.tensor(here, device=w.device), self._slope(up, down))
            w.sub_(z.mul_(g.unsqueeze(1)), alpha=self.optim.lr)
            for k, one in enumerate(g.tolist()):
                scalars[k] += [one] if k in here else []
            pack.report(batch, (up + down) / 2)
        found = [torch.tensor(own, dtype=pack.dtype) for own in scalars]
        if self.sums:
            mine = [pack.value(k, SUMS) + summed(torch.tensor(drawn[k], dtype=torch.long), found[k], self.seeds) for k in people]
            return pack.updates(tensors=[{SUMS: own} for own in mine])
        return pack.updates(tensors=[{SCALARS: own} for own in found])

    def _slope(self, up: Tensor, down: Tensor) -> Tensor:
        """g [k]; 0 for a step that is left out."""
        gap = up - down
        taken = gap.isfinite() if self.largest_gap is None else gap.abs() <= self.largest_gap
        return torch.where(taken, gap / (2 * self.epsilon), torch.zeros_like(gap))

    # server -----------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        here = self._trained(server.bench.backbone, server.bench.task)
        for name, other in server.bench.others.items():
            if self._trained(other.backbone, other.task) != here:
                raise UserError(
                    f"fedkseed takes the steps of all clients along the same directions, and what is tuned has other tensors on "
                    f"{name} than on {server.bench.backbone.name}: give all clients one backbone."
                )

    def _trained(self, backbone: Backbone, task: Task) -> dict[str, tuple[int, ...]]:
        parts = super().adapt(backbone, task, ClientInfo(""))
        return {
            f"{name}/{site.name}/{role}": init.shape
            for name, (part, _) in parts.items()
            for site in part.sites(backbone)
            for role, init in part.tensors(backbone, site).items()
        }

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {} if self.sums else {SCALARS: (self.steps,)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        if self.sums:
            server.mean(updates)
            return
        held, pi = server.shared[SUMS], server.shared.get(PI)
        assert isinstance(held, Tensor) and (pi is None or isinstance(pi, Tensor))
        edges = edges_of(pi, self.seeds)
        sizes, counts = (server.memo.get(name, torch.zeros(self.seeds)) for name in ("sizes", "counts"))
        heard = False

        def read() -> Iterator[Update]:
            nonlocal sizes, counts, heard
            for update in updates:
                g = update.tensors[SCALARS]
                assert isinstance(g, Tensor)
                j = seeds_at(edges, server.generator("seeds", update.client.id), len(g))
                heard, sizes = True, sizes + summed(j, g.abs().clamp(max=LARGEST), self.seeds)
                counts = counts + summed(j, (g != 0).to(g.dtype), self.seeds)  # a step that was left out has none
                yield replace(update, tensors={SUMS: held + summed(j, g, self.seeds)})

        server.mean(read())
        if self.pro and heard:
            server.memo |= {"sizes": sizes, "counts": counts}
            server.write(PI, probabilities(sizes, counts).to(held.dtype))


# of directions ------------------------------------------------------------------------------------------------------------


def shapes_of(pack: Pack) -> Shapes:
    """Of the tensors that a direction has entries for, by name and without client axis, in the order of its entries."""
    return {n: tuple(pack.tensors[n].shape[1:]) for n in sorted(pack.tensors) if not n.startswith("seeds/")}


def split(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors [K, …] from vectors [K, n], of which they are views."""
    pieces = flat.split([math.prod(shape) for shape in shapes.values()], 1)
    return {name: piece.view(len(flat), *shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


@functools.lru_cache(maxsize=1)
def moved(seed: int, weights: bytes, size: int, dtype: torch.dtype) -> Tensor:
    """η Σ_j a_j z_j, [size]; the last one is kept, as all packs of a round are made of it.

    Args:
        weights: η a_1 … η a_K as float64.
    """
    kind = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(combination(seed, np.frombuffer(weights), size, kind)).to(dtype)


# of seeds -----------------------------------------------------------------------------------------------------------------


def edges_of(pi: Tensor | None, seeds: int) -> Tensor:
    """float64 [K]: where on a line the share π_j of each seed ends; all are alike as long as nothing is known of them."""
    known = pi if pi is not None and bool(pi.any()) else torch.ones(seeds)
    return known.cpu().double().cumsum(0)


def seeds_at(edges: Tensor, stream: torch.Generator, steps: int) -> Tensor:
    """int64 [steps]: the seeds of the coming steps; those of one after another are those of all at once."""
    places = torch.rand(steps, generator=stream, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, places, right=True).clamp(max=len(edges) - 1)


def summed(numbers: Tensor, values: Tensor, seeds: int) -> Tensor:
    """[K]: the sum of the values of each seed, in float64 until the end."""
    return torch.zeros(seeds, dtype=torch.float64).index_add_(0, numbers, values.double()).to(values.dtype)


def probabilities(sizes: Tensor, counts: Tensor) -> Tensor:
    """float64 [K]: softmax of the mean |g| of each seed, moved and scaled to [0, 1]; each history begins with a 0.

    Args:
        sizes: Σ |g|, no |g| counting for more than :data:`LARGEST`. counts: how many.
    """
    means = sizes.double() / (counts.double() + 1)
    above = means - means.min()
    return (above / above.max().clamp(min=torch.finfo(torch.float64).tiny)).softmax(0)
