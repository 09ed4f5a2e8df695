"""FedPM: weights stay as they were drawn; clients learn how likely each of them is to be kept, and send one bit for it.

B. Isik, F. Pase, D. Gündüz, T. Weissman, M. Zorzi, "Sparse Random Networks for Communication-Efficient Federated Learning",
ICLR 2023, arXiv 2209.15328. Code: BerivanIsik/sparse-random-networks.

Weights w are drawn once from {-c, c}, c = e/√fan_in, by everybody for himself from the run's seed: they are never trained and
never travel. What is learnt is θ, the probability of each weight to be in the network. In a round

    down     θ
    client   s ← logit θ; in each step m ~ Bern(σ(s)) is drawn anew, and s moves by Adam down the loss of the network w ⊙ m,
             where the gradient by θ is taken to be θ times that by m, or simply that by m
    up       u_k ~ Bern(σ(s)), one bit for each weight
    server   α ← α + Σ_k u_k and β ← β + Σ_k (1 - u_k), which start at λ₀ and start anew every R rounds;
             θ ← (α - 1) / (α + β - 2), the mode of the posterior Beta(α, β), cut to [0.01, 0.99]

With λ₀ = 1 and R = 1 θ becomes the mean of the bits. It has then one of K + 1 values for K clients: of few clients little is
learnt in a round, and with one alone every θ falls to 0.01 or 0.99. A larger R or several ``samples`` are for them.

What a run leaves is the network of the weights with θ > ½. The paper scores the network of one sampled mask, which is a view, as
is what most of several such networks say.

The paper counts H(p) bits for each weight, p being the share of ones, as an arithmetic coder would need; here it is one bit, and
⌈d/8⌉ bytes for a tensor of d weights. θ goes down as floats: ``--download-codec quant8`` makes it a quarter of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from weft.contract import (
    GIVEN,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    Bounded,
    ClientInfo,
    Count,
    Init,
    Integers,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Scope,
    ServerState,
    Shape,
    Share,
    Task,
    Tune,
    Tuned,
    Update,
    UserError,
    Value,
    Values,
    Weighting,
    average,
    named,
)
from weft.tensors.keyed import generator

FROZEN, THETA = "frozen", "theta"
"""Parts that hold, for each tensor with masks, w and θ."""
EDGE = 0.01
"""θ is from this to 1 less this, so that its logit is finite."""


class FedPM(Tuned):
    """Defaults of the code's runs on CIFAR-10; θ starts uniform, as the paper has it.

    Attributes:
        tune: what has masks: all its matrices (kernels and tables too), and the biases of the layers that have one. The weights
            of the backbone and the head are the paper's random network in the backbone's shape.
        pretrained: masks are learnt over the values that the backbone comes with, where it has some (cf. DeltaMask, arXiv
            2311.17299), instead of over random ones.
        kept: θ at the start of weights that are ``pretrained``; near 0 or ½ the backbone would be in pieces.
        gradient: ``scaled``: θ times the gradient by the mask, as the code has it; ``straight``: that gradient.
        prior: λ₀. reset: R, the rounds after which α and β start anew; None = ⌈clients / cohort⌉, so that about everybody is
            heard once before (the paper); the code resets in each round.
        samples: masks that a client draws in the end, whose sum it sends.
        votes: networks that the view ``global/vote`` asks.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedpm",
        title="Masks over frozen random weights: one random bit of each goes up",
        paper="Isik et al., ICLR 2023",
        arxiv="2209.15328",
        family="selective",
        challenges=("communication efficiency",),
        evidence="code",
        deviations=(
            "The paper masks convolutional networks without norms; here it is a network of the backbone's shape, the head too, "
            "in which vectors beside no matrix (of norms) stay as they are. The headline is the network of the weights with "
            "θ > ½, where the code scores one sampled mask for each batch. θ is cut to [0.01, 0.99], where the code makes 0.01 "
            "and 0.99 of the bits before it takes their mean; it starts uniform, where the code draws its logit from N(0, 1). "
            "Adam begins anew in each round, where the code goes on with a client's moments. Bits are not entropy-coded."
        ),
        sends=(
            "for each weight one random bit, which is the likelier 1 the more its training has come to want that weight; and the "
            "number of examples"
        ),
        views=("global", "global/sampled", "global/vote"),
    )
    demands: ClassVar[tuple[str, ...]] = ("*",)
    shares: ClassVar[Scope] = TEMPORARY

    tune: Tune = Tune("weights")
    pretrained: bool = False
    kept: Share = 0.99
    gradient: Literal["scaled", "straight"] = "scaled"
    prior: Annotated[float, Ge(1)] = 1.0
    reset: Count | None = 1
    samples: Count = 1
    votes: Count = 3
    weighting: Weighting = "uniform"
    epochs: Positive = 3.0
    batch: Count = 128
    optim: Optim = Optim("adamw", lr=0.1, schedule="constant")

    # what has masks -----------------------------------------------------------------------------------------------------

    @property
    def gives_away(self) -> str:
        return "sends bits, which have no norm"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        parts = super().adapt(backbone, task, client)
        frozen = self._frozen(parts, backbone)
        if not frozen:
            raise UserError(
                "fedpm has masks over matrices, and what is tuned has none: choose another tune.kind, such as weights."
            )
        roles = [name.replace("/", ">") for name in frozen]
        theta = [self._start(init) for init in frozen.values()]
        masks: Adaptation = {
            FROZEN: (Values(tuple(zip(roles, frozen.values(), strict=True))), TEMPORARY),
            THETA: (Values(tuple(zip(roles, theta, strict=True))), GIVEN),
        }
        return {**parts, **masks}

    def _frozen(self, parts: Adaptation, backbone: Backbone) -> dict[str, Init]:
        """Name -> w: pretrained, or drawn from [-c, c], of which the sign is kept."""
        sites: dict[str, dict[str, Init]] = {}
        for name, init, _ in named(parts, backbone):
            site, _, role = name.rpartition("/")
            sites.setdefault(site, {})[role] = init
        found = {}
        for site, inits in sites.items():
            fans = {role: math.prod(init.shape[1:]) for role, init in inits.items() if len(init.shape) > 1}
            rows = {inits[role].shape[0]: fan for role, fan in fans.items()}
            for role, init in inits.items():
                fan = fans.get(role) or (rows.get(init.shape[0]) if init.shape else None)
                if fan is None:
                    continue
                own = self.pretrained and init.kind == "value"
                found[f"{site}/{role}"] = init if own else Init(init.shape, "uniform", math.e * math.sqrt(1 / fan))
        return found

    def _start(self, init: Init) -> Init:
        """θ before the first round."""
        if init.kind == "value":
            return Init(init.shape, "value", value=torch.tensor(self.kept).expand(init.shape))
        return Init(init.shape, "share")

    def load(self, pack: Pack) -> None:
        """w, and the network of the weights with θ > ½."""
        for name, init, _ in named({FROZEN: pack.adaptations[0][FROZEN]}, pack.backbone):
            if init.kind == "uniform":
                one = pack.tensors[name][:1]
                pack.tensors[name] = torch.full_like(one, init.scale).copysign(one).expand_as(pack.tensors[name])
        w = of(pack, FROZEN)
        pack.tensors.update({name: w[name] * (theta > 0.5) for name, theta in of(pack, THETA).items()})

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        use = {name: 1.0 for name in pack.adaptations[0] if name not in (FROZEN, THETA)}
        if view in (None, "global"):
            return pack(batch, use=use)
        w, outputs = of(pack, FROZEN), []
        for i in range(1 if view == "global/sampled" else self.votes):
            stream = generator(0, "mask", i)  # the same for all rows and in all runs: what is exported predicts alike
            uniform = {n: torch.rand(theta.shape[1:], generator=stream) for n, theta in of(pack, THETA).items()}
            with pack.values({n: w[n] * (uniform[n].to(pack.device) < theta) for n, theta in of(pack, THETA).items()}):
                outputs.append(pack(batch, use=use))
        return outputs[0] if view == "global/sampled" else majority(outputs)

    # client -------------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        w, names = of(pack, FROZEN), list(of(pack, THETA))
        for name, theta in of(pack, THETA).items():  # in a turn scores stand where else the network is
            pack.tensors[name] = theta.clamp(EDGE, 1 - EDGE).logit()
        if pack.has_work():
            optimizer = pack.optimizer(*names, settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
            draws = pack.generators("mask")
            for batch in pack.batches(self.epochs, self.steps, self.batch):
                uniform = self._uniform(pack, batch, names, draws)

                def objective(pack: Pack, batch: Batch, uniform: Mapping[str, Tensor] = uniform) -> Tensor:
                    with pack.values({n: w[n] * self._mask(pack.tensors[n], uniform[n]) for n in names}):
                        return self.objective(pack, batch)

                pack.report(batch, pack.step(optimizer, objective, batch))
        return pack.updates(tensors=[self._drawn(pack, k, stream) for k, stream in enumerate(pack.generators("upload"))])

    def _uniform(self, pack: Pack, batch: Batch, names: Iterable[str], draws: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """[K, …] from [0, 1), for each client in the batch of its own stream."""
        found = {n: torch.ones(tuple(pack.tensors[n].shape)) for n in names}
        for k in range(len(draws)) if batch.clients is None else batch.clients.tolist():
            for value in found.values():
                value[k] = torch.rand(value.shape[1:], generator=draws[k])
        return {n: value.to(pack.device) for n, value in found.items()}

    def _mask(self, score: Tensor, uniform: Tensor) -> Tensor:
        """m ~ Bern(σ(s)), and the gradient that goes through it."""
        theta = score.sigmoid()
        slope = theta.detach() if self.gradient == "scaled" else 1.0
        return (uniform < theta).to(theta) + slope * (theta - theta.detach())

    @torch.no_grad()
    def _drawn(self, pack: Pack, k: int, stream: torch.Generator) -> dict[str, Value]:
        """What one client sends."""
        found: dict[str, Value] = {}
        for name in pack.params(THETA):
            theta = pack.value(k, whose(name)).sigmoid()
            bits = torch.rand((self.samples, *theta.shape), generator=stream) < theta
            found[name] = Integers(bits.sum(0), self.samples + 1)
        return found

    # server -------------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        theta = named({THETA: server.adaptation[THETA]}, server.bench.backbone)
        return {name: Bounded(init.shape, self.samples + 1) for name, init, _ in theta}

    @torch.no_grad()
    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        new = 0

        def shares() -> Iterator[Update]:
            """Updates with the share of ones in the place of their number."""
            nonlocal new
            for update in updates:
                new += self.samples
                yield replace(
                    update, tensors={n: numbers(v).to(server.bench.dtype) / self.samples for n, v in update.tensors.items()}
                )

        found = server.average(shares(), THETA)
        if not found:
            return
        rounds = self.reset or math.ceil(len(server.clients) / len(server.cohort))
        cycle = server.round.index // rounds
        old = server.memo["masks"] if server.memo.get("cycle") == cycle else 0
        counts = {name: new * mean + (server.memo[f"ones/{name}"] if old else 0) for name, mean in found.items()}
        for name, ones in counts.items():
            alpha, beta = self.prior + ones, self.prior + (old + new - ones)
            server.write(name, ((alpha - 1) / (alpha + beta - 2)).clamp(EDGE, 1 - EDGE))
        if rounds > 1:
            server.memo |= {"cycle": cycle, "masks": old + new} | {f"ones/{name}": ones for name, ones in counts.items()}


def whose(name: str) -> str:
    """The tensor that a value of ``frozen`` or ``theta`` is of."""
    return name.rpartition("/")[2].replace(">", "/")


def of(pack: Pack, part: str) -> dict[str, Tensor]:
    """w or θ, [K, …] by the names of the tensors that they are of."""
    return {whose(name): value for name, value in pack.params(part).items()}


def numbers(value: Value) -> Tensor:
    """Of ones among a client's bits, or the mean of such numbers."""
    if isinstance(value, Integers):
        return value.values
    assert isinstance(value, Tensor)
    return value


def majority(outputs: Sequence[Output]) -> Output:
    """Logits whose largest is the class that most outputs say, and among classes of as many votes the likeliest in their mean."""
    logits = torch.stack([out.logits for out in outputs])
    if logits.shape[-1] == 1:  # a number, for which nobody can vote
        return average(outputs)
    votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    likely = logits.softmax(-1).mean(0)
    return Output((votes + likely.clamp(min=torch.finfo(likely.dtype).tiny)).log())
