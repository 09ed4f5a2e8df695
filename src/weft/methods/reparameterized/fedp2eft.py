"""FedP²EFT: clients train a common network together that makes of a client's own features which ranks its LoRA has.

R. Lee, M. Kim, F. Rezk, R. Li, S. I. Venieris, T. Hospedales, "FedP²EFT: Federated Learning to Personalize PEFT for Multilingual
LLMs", AAAI 2026, arXiv 2502.04387. Code: SamsungLabs/fedp2eft.

A linear layer l is W x + α/r · B (λ_l ⊙ A x). Of s, means and deviations of what goes into linear layers for its training rows, a
client makes λ = clamp(PSG_φ(s)), PSG an MLP, gradients straight through the clamp. In a round, with φ as received,

    1. A, B, λ ← AdamW along  L + (α_s Σ_li ‖B_li‖₁ / λ_li + α_p Σ_li (log λ_li + 100 λ_li)) / n     from λ = PSG_φ(s)
    2. φ ← Adam along  ‖PSG_φ(s) - clamp(λ)‖₁

and φ alone goes up. To be scored, a client keeps the largest of its λ over all layers together, so many that a layer has
``budget`` ranks on average, and trains their A and B from the start on, along L alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    Init,
    LoRA,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    Site,
    Task,
    Update,
    UserError,
    Values,
)

LOW, HIGH = 1e-4, 1e3
SCORES = "scores/values/lambda"


class FedP2EFT(Method):
    """Defaults of the code.

    Attributes:
        rank: r of the LoRA that ranks are chosen from. budget: ranks that a layer has on average when a client is scored.
        alpha: of the LoRA; the scale is α/r, whatever is left of it.
        sparsity: α_s, the weight of ‖B‖₁ / λ. prior: α_p, that of log λ + 100 λ.
        score_lr: learning rate of λ.
        generator: of φ, in stage 2. generator_steps: of stage 2.
        sites: linear layers of the blocks that get LoRA, see ``Backbone.sites``; those outside, the head's too, always do.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedp2eft",
        title="A common network turns a client's statistics into the ranks of its LoRA",
        paper="Lee et al., AAAI 2026",
        arxiv="2502.04387",
        family="reparameterized",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "The backbone is taken as it is, with the head that set-up gave it (the paper first tunes it by FedAvg). Statistics "
            "are those of a row's own tokens; the code averages over padding as well, which depends on the rows beside. Layers "
            "that see more than rows, and a language model's output layer, have none. Stage 2 fits λ held "
            "within its bounds, which it leaves in the code, and the clamp is exact."
        ),
        views=("personal",),
        needs=("factors",),
        sends="the network that chooses ranks, and the number of examples; neither statistics, nor ranks, nor LoRA",
    )

    rank: Count = 32
    budget: Count = 2
    alpha: Positive = 64.0
    sparsity: NonNegative = 100.0
    prior: NonNegative = 0.01
    score_lr: NonNegative = 1e-2
    generator: Optim = Optim("adamw", lr=1e-4, schedule="constant")
    generator_steps: Count = 10
    sites: str = "all"
    epochs: Positive = 2.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-4, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "makes ranks of what layers do with all of a client's rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget > self.rank:
            raise UserError(
                f"a budget of {self.budget} ranks a layer is more than the {self.rank} that there are: choose a smaller "
                "method.budget, or a larger method.rank."
            )

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.encoder_decoder:
            raise UserError(
                f'fedp2eft describes rows by what goes into layers, and backbone "{backbone.name}" reads one row and writes '
                "another: choose a --model with one stack of blocks, such as smollm2, or a method such as fedalt."
            )
        lora = self._lora(backbone)
        entries = len(lora.sites(backbone)) * self.rank
        return {
            "generator": (Generator.of(2 * len(described(backbone)), entries), SHARED),
            "lora": (lora, TEMPORARY),
            "scores": (Values((("lambda", (entries,)),)), TEMPORARY),
            "head": (task.head, GIVEN),
        }

    def _lora(self, backbone: Backbone) -> LoRA:
        names = [s.name for s in (*backbone.sites(self.sites), *outside(backbone))]
        return LoRA(self.rank, self.alpha, "names:" + ",".join(dict.fromkeys(names)))

    # training -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        s = statistics(pack, self.batch)
        target = self._learnt(pack, self.scores(pack, s).detach())

        def distance(pack: Pack, batch: Batch) -> Tensor:
            return batch.of((self.scores(pack, s) - target).abs().sum(1))

        phi = pack.optimizer("generator", settings=self.generator, total=self.generator_steps)
        everybody = next(pack.batches(None, 1, 1))  # who trains; what is in their rows is in s
        for _ in range(self.generator_steps):
            pack.step(phi, distance, everybody)
        return pack.updates()

    def _learnt(self, pack: Pack, start: Tensor) -> Tensor:
        """λ after stage 1, within its bounds; A, B and λ are thrown away."""
        own = pack.twin()
        own.tensors[SCORES] = start
        about: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
        rates = {"lora": self.optim.lr, "scores": self.score_lr}
        optimizer = own.optimizer("lora", "scores", settings=self.optim.but(lr=1.0), rates=rates, **about)
        for batch in own.batches(**about):
            losses: list[Tensor] = []
            own.step(optimizer, functools.partial(self._sparse, losses=losses), batch)
            pack.report(batch, losses[-1])
        return own.tensors[SCORES].detach().clamp(LOW, HIGH)

    def scores(self, pack: Pack, s: Tensor) -> Tensor:
        """clamp(PSG_φ(s)), [K, layers · r] of [K, features]."""
        return through(Generator.read({n.rsplit("/", 1)[1]: w for n, w in pack.params("generator").items()}, s))

    def _sparse(self, pack: Pack, batch: Batch, losses: list[Tensor]) -> Tensor:
        """The loss with both penalties, [k]; without them into ``losses``."""
        loss = self._scored(pack, batch)
        losses.append(loss.detach())
        width = through(pack.tensors[SCORES])
        size = torch.cat([pack.tensors[n].abs().sum(1) for n in factors(pack, "B")], 1)
        penalty = self.sparsity * size / width + self.prior * (width.log() + 100 * width)
        n = torch.tensor([max(len(c.data.train), 1) for c in pack.clients], dtype=pack.dtype, device=pack.device)
        return loss + batch.of(penalty.sum(1) / n)

    def _scored(self, pack: Pack, batch: Batch) -> Tensor:
        """The loss with λ at work, [k]."""
        with pack.values(weighted(pack)):
            return self.objective(pack, batch)

    # predicting ---------------------------------------------------------------------------------------------------------

    def personalise(self, pack: Pack) -> None:
        found = self.scores(pack, statistics(pack, self.batch)).detach()
        place = found.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # of equal ones the first
        pack.tensors[SCORES] = found * (place < self.budget * found.shape[1] // self.rank)
        pack.minimise(self._scored, ("lora",), self.optim, self.epochs, self.steps, self.batch)
        pack.tensors.update({n: w.detach() for n, w in weighted(pack).items()})  # a plain LoRA from here on
        self._into_head(pack)

    def _into_head(self, pack: Pack) -> None:
        """The LoRA beside a head's layers becomes part of them: a head is exported whole."""
        lora, _ = pack.adaptations[0]["lora"]
        for site in pack.backbone.heads:
            a, b, head = f"lora/{site.name}/A", f"lora/{site.name}/B", f"head/{site.name}/weight"
            if a in pack.tensors:
                moved = lora.constants(site)["scale"] * pack.tensors[b].detach() @ pack.tensors[a]
                pack.tensors[head] = pack.tensors[head] + moved
                pack.tensors[b] = torch.zeros_like(pack.tensors[b])

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={"lora": 1.0})


# layers -----------------------------------------------------------------------------------------------------------------


def outside(backbone: Backbone) -> list[Site]:
    """Linear layers that are in no block."""
    return [*backbone.outer, *(s for s in backbone.heads if s.role == "head")]


def described(backbone: Backbone) -> list[Site]:
    """Linear layers whose inputs describe a client. Where queries and keys see more than rows, values do: they read the same."""
    return [s for s in (*backbone.linears, *outside(backbone)) if s.per_row]


def factors(pack: Pack, role: str) -> list[str]:
    """Names of a factor at every layer, in the order of λ."""
    lora, _ = pack.adaptations[0]["lora"]
    return [f"lora/{s.name}/{role}" for s in lora.sites(pack.backbone)]


def weighted(pack: Pack) -> dict[str, Tensor]:
    """λ ⊙ A of every layer, [K, r, d_in]: with that in its place a LoRA is B (λ ⊙ A x)."""
    names = factors(pack, "A")
    parts = pack.tensors[SCORES].unflatten(1, (len(names), -1)).unbind(1)
    return {n: w.unsqueeze(2) * pack.tensors[n] for n, w in zip(names, parts, strict=True)}


@torch.no_grad()
def statistics(pack: Pack, size: int) -> Tensor:
    """[K, 2 · layers] means, then deviations √(variance + 1e-5), of all that goes into a layer for a client's training rows, with
    no part at work but the head.

    Args:
        size: rows of a pass.
    """
    exact = torch.float32 if pack.device.type == "mps" else torch.float64  # which has no float64
    names = [s.name for s in described(pack.backbone)]
    sums = torch.zeros(3, len(pack.clients), len(names), dtype=exact, device=pack.device)  # numbers, their sum, that of squares

    def note(x: Tensor, own: Tensor, *, layer: int, who: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~own.unsqueeze(-1), 0.0)
        count = own.sum((1, 2)) * x.shape[-1]
        found = torch.stack([count.to(exact), x.sum((1, 2, 3), dtype=exact), x.square().sum((1, 2, 3), dtype=exact)])
        sums[:, :, layer].index_add_(1, who, found.to(sums.device))

    everybody = torch.arange(len(pack.clients), device=pack.device)
    for batch in pack.batches(1.0, None, size, "statistics"):
        who = batch.of(everybody)
        with pack.tapped({n: functools.partial(note, layer=i, who=who) for i, n in enumerate(names)}):
            pack(batch, use={})
    count = sums[0].clamp(min=1)
    mean = sums[1] / count
    variance = (sums[2] / count - mean.square()).clamp(min=0)
    return torch.cat([mean, (variance + 1e-5).sqrt()], 1).to(pack.dtype)


# the generator ----------------------------------------------------------------------------------------------------------


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(LOW, HIGH)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0]


def through(x: Tensor) -> Tensor:
    """x within its bounds, with the gradient of x.

    What lies outside comes out as the bound to the last bit. The usual x + (clamp(x) - x).detach() is off by a rounding error, of
    which the L1 distance to a target at the same bound takes the sign, and Adam makes a whole step of that.
    """
    found: Tensor = _Through.apply(x)
    return found


@dataclass(frozen=True)
class Generator(Values):
    """PSG: [features] → [2 · features] → [entries], with one PReLU; weights ~ Xavier's normal with gain 1e-6, biases 1e-4."""

    @classmethod
    def of(cls, features: int, entries: int) -> Generator:
        hidden = 2 * features
        shapes = {"in": (hidden, features), "in_bias": (hidden,), "slope": (1,), "out": (entries, hidden), "out_bias": (entries,)}
        return cls(tuple((name, cls._start(name, shape)) for name, shape in shapes.items()))

    @staticmethod
    def _start(name: str, shape: tuple[int, ...]) -> Init:
        if len(shape) == 2:
            return Init(shape, "normal", 1e-6 * math.sqrt(2 / sum(shape)))
        return Init(shape, "value", value=torch.full(shape, 0.25 if name == "slope" else LOW))

    @staticmethod
    def read(w: Mapping[str, Tensor], s: Tensor) -> Tensor:
        """[K, entries] of s [K, features], the weights with their client axis."""
        z = torch.einsum("kf,khf->kh", s, w["in"]) + w["in_bias"]
        return torch.einsum("kh,keh->ke", torch.where(z > 0, z, w["slope"] * z), w["out"]) + w["out_bias"]
