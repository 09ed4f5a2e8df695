"""Pilot: adapters on the vision-language connector, of a task and of a client, then a mixture across tasks; a LoRA of neighbours.

B. Xiong, X. Yang, Y. Song, Y. Wang, C. Xu, "Pilot: Building the Federated Multimodal Instruction Tuning Framework", AAAI 2025,
arXiv 2501.13985. Code: MightXiong/FedMIT, the client's side alone.

H are the visual tokens of a picture, which the frozen tower makes; ψ, σ and χ are MLPs of the connector's shape that begin as
copies of it. ψ_i is of the task i, and a client's own task is the first.

    round 0, stage 1   ψ_1(H) + σ(H) in the place of the connector
                       ψ_1, σ and LoRA go down L_ce + λ0 L_d,  L_d = how much ψ_1(H) and σ(H) span the same directions
    later,   stage 2   Σ_i P_i h_i,  P = softmax(G H),  h_1 = ψ_1(H),  h_i = ψ_i(H) + χ_i(H)
                       ψ_1, all χ, G and LoRA go down L_ce + λ1 L_b + λ2 L_z
    server             ψ_i ← Σ_k n_k ψ_k / Σ_k n_k over the clients k of task i that are there
                       LoRA of client k ← ρ_k Θ_k + (1 - ρ_k) Σ_j w_kj Θ_j over the M clients whose Θ_j are nearest to Θ_k

ψ_1 and Θ go up; all ψ and the client's own mix of Θ come down. σ, χ and G stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.aggregation.mean import WeightedMean
from weft.aggregation.neighbours import Share, apart, mixing, products_apart
from weft.contract import (
    GIVEN,
    PERSONAL,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    ConnectorAdapter,
    ConnectorMixture,
    Count,
    LoRA,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    Round,
    ServerState,
    Task,
    Update,
    UserError,
    Whole,
    mean_of,
)

STAGE_1, STAGE_2 = "stage 1", "stage 2"
TASK, CLIENT, MIXTURE, LORA = "task", "client", "mixture", "lora"
OWN = "task1."
"""Begins the roles of ψ_1 in the mixture."""

Form = Literal["tokens", "code"]


class Pilot(Method):
    """Defaults of the code; those of aggregation, of which there is none, are choices.

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A. sites: linear layers of the language model that get it, see
            ``Backbone.sites``.
        difference, balance, router_z: λ0, λ1 and λ2. difference_of: what L_d compares: directions of ``tokens`` of one picture,
            or whole pictures of a batch as the ``code`` does, which comes to next to nothing.
        top: experts that each token takes; None = all, as in the code's scripts.
        stage2_client: what becomes of σ in stage 2: ``drop``, as in the code, or ``add_frozen``.
        halve_init: ψ, σ and χ begin as halves of the connector, so that what the language model sees at first is not doubled.
        neighbours: M. share: ρ_k = n_k / (n_k + Σ_j w_kj n_j) by ``default``; ``raw``: shares of Θ_k and Θ_j are as n_k is to
            1/d_kj, so that hardly anything is mixed.
        distance: between ``factors`` of LoRA, or between its ``products``.
        lora_rate: of LoRA in stage 2, over the learning rate of the rest.
        batch: a GPU's part of the code's: 16 rows, accumulated twice, on 7 to 8 GPUs.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pilot",
        title="Connector adapters of tasks and clients, a mixture across tasks, and LoRA mixed with that of the nearest clients",
        paper="Xiong et al., AAAI 2025",
        arxiv="2501.13985",
        family="adapters",
        challenges=("data heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "The code is the client's side alone; aggregation, what travels and who trains when are rebuilt from notes on the "
            "paper. Stage 1 is a round by itself, in which all clients take part, and stage 2 begins with the next. The "
            "difference loss compares directions of a picture's tokens, where the code's comes to next to nothing. How much of "
            "its own LoRA a client keeps, and the number of neighbours, are choices. A batch is what one GPU of the code has, "
            "and LoRA has no dropout."
        ),
        views=("personal",),
        sends="the connector adapter of its task and its LoRA, and once the name of its task, which is the domain of its rows",
        asks=("domain", "every domain"),
        needs=("connector", "factors", "all updates"),
    )
    demands: ClassVar[tuple[str, ...]] = (LORA,)

    rank: Count = 64
    alpha: Positive = 128.0
    sites: str = "all"
    difference: NonNegative = 0.1
    difference_of: Form = "tokens"
    balance: NonNegative = 0.1
    router_z: NonNegative = 0.01
    top: Count | None = None
    stage2_client: Literal["drop", "add_frozen"] = "drop"
    halve_init: bool = False
    neighbours: Whole = 3
    share: Share = "default"
    distance: Literal["factors", "products"] = "factors"
    lora_rate: Positive = 2.0
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=2e-5, schedule="cosine", warmup=0.03)

    @property
    def sees_rows(self) -> str:
        return "balances what the rows of a batch do together"

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        tasks, scale = len(every_task(client)), 0.5 if self.halve_init else 1.0
        if client.id and client.facts.get("every domain") and "domain" not in client.facts:
            raise UserError(
                f"{client.id} has no domain of its own, and pilot has a connector adapter for each: deal rows out by their "
                "domain (--partition natural), or start a site with --fact domain=NAME."
            )
        if self.top is not None and self.top > tasks and not client.id:  # a new client is not told how many there are
            raise UserError(
                f"there are {tasks} tasks, of which no token can take {self.top}: set method.top to fewer, or leave it out."
            )
        one, mixture = ConnectorAdapter(scale), ConnectorMixture(scale, tasks, self.top)
        site = backbone.check_connector()
        scopes = dict.fromkeys(mixture.tensors(backbone, site), PERSONAL)
        scopes |= {role: SHARED if role.startswith(OWN) else GIVEN for role in scopes if role.startswith("task")}
        return {
            TASK: (one, SHARED),
            CLIENT: (one, PERSONAL),
            MIXTURE: (mixture, scopes),
            LORA: (LoRA(self.rank, self.alpha, self.sites), SHARED),
        }

    def plan(self, server: ServerState, t: int) -> Round | None:
        """All clients go on to stage 2 together: ψ of both stages have no mean."""
        if t >= server.rounds:
            return None
        return Round(0, STAGE_1, "all") if t == 0 else Round(t, STAGE_2)

    # client -----------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        if stage_1(pack.round):
            return pack(batch, use={TASK: 1.0, CLIENT: 1.0, LORA: 1.0})
        use = {MIXTURE: 1.0, LORA: 1.0}
        return pack(batch, use=use | ({CLIENT: 1.0} if self.stage2_client == "add_frozen" else {}))

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        loss, seen = pack.loss(self.forward(pack, batch), batch), pack.patches(batch)
        rows = torch.from_numpy(batch.index >= 0).to(pack.device)
        if stage_1(pack.round):
            mine, own = (features(pack, batch, part, seen) for part in (TASK, CLIENT))
            return loss + self.difference * alike(mine, own, rows, self.difference_of)
        (router,) = pack.params(f"{MIXTURE}/*/router").values()
        logits = seen @ batch.of(router).unsqueeze(1).mT
        return loss + self.balance * mean_of(imbalance(logits), rows) + self.router_z * mean_of(sizes(logits), rows)

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        first = stage_1(pack.round)
        moving, rates = ((TASK, CLIENT, LORA), {}) if first else ((MIXTURE, LORA), {LORA: self.lora_rate})
        turn: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
        optimizer = pack.optimizer(*moving, settings=self.optim, rates=rates, **turn)
        for batch in pack.batches(**turn):
            pack.report(batch, pack.step(optimizer, self.objective, batch))
        return pack.updates()

    # server -----------------------------------------------------------------------------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        """All ψ, or in stage 1 the own one, and its mix of LoRA; nothing to a new client of which nobody knows the task."""
        noted, order = server.notes.get(client.id), tasks_of(client)
        message = Message({n: v for n, v in noted.items() if n.startswith(f"{LORA}/")})
        if len(order) < len(every_task(next(iter(server.clients), client))):
            return message
        site = server.bench.backbone.check_connector().called
        for name, value in server.memo.items():
            task, _, role = name.partition("|")
            place = order.index(int(task)) + 1
            if not stage_1(server.round):
                message.tensors[f"{MIXTURE}/{site}/task{place}.{role}"] = value
            elif place == 1:
                message.tensors[f"{TASK}/{site}/{role}"] = value
        return message

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        got = list(updates)
        self._by_task(server, got)
        self._by_distance(server, got)

    def _by_task(self, server: ServerState, updates: list[Update]) -> None:
        """ψ of a task of which nobody is there stays as it is."""
        means: dict[int, WeightedMean] = {}
        for update in updates:
            mine = {role_of(n): v for n, v in update.tensors.items() if not n.startswith(f"{LORA}/") and isinstance(v, Tensor)}
            means.setdefault(tasks_of(update.client)[0], WeightedMean()).add(mine, server.weigh(update))
        for task, mean in means.items():
            server.memo |= {f"{task}|{role}": value for role, value in mean.result().items()}

    def _by_distance(self, server: ServerState, updates: list[Update]) -> None:
        """Those who are away keep their LoRA."""
        if not updates:
            return
        own = [{n: v for n, v in u.tensors.items() if n.startswith(f"{LORA}/") and isinstance(v, Tensor)} for u in updates]
        if self.distance == "factors":
            distances = apart(own)
        else:
            distances = products_apart([[u.lowrank(LORA, site) for site in server.sites(LORA)] for u in updates])
        taken = mixing(distances, [server.weigh(u) for u in updates], self.neighbours, self.share)
        for k, (update, row) in enumerate(zip(updates, taken.tolist(), strict=True)):
            near = [(w, own[j]) for j, w in enumerate(row) if w and j != k]
            # as changes of its own: where all are alike, it stays bit for bit
            mixed = {n: sum((w * (other[n] - v) for w, other in near), v.clone()) for n, v in own[k].items()}
            server.notes.put(update.client.id, mixed)


def stage_1(round: Round) -> bool:
    """By its number, which is all that a checkpoint tells of a round."""
    return round.index == 0


# tasks ----------------------------------------------------------------------------------------------------------------


def every_task(client: ClientInfo) -> Sequence[Any]:
    """The tasks of the federation; of one that names none there is one."""
    return client.facts.get("every domain") or [client.facts.get("domain")]


def tasks_of(client: ClientInfo) -> list[int]:
    """Places of the tasks among all, the client's own first; nothing for a client of no task, where there are some."""
    every = every_task(client)
    if client.facts.get("domain") not in every:
        return []
    own = every.index(client.facts.get("domain"))
    return [own, *(i for i in range(len(every)) if i != own)]


def role_of(name: str) -> str:
    """Of a tensor of ψ_1, in either stage."""
    return name.rpartition("/")[2].removeprefix(OWN)


# losses ---------------------------------------------------------------------------------------------------------------


def features(pack: Pack, batch: Batch, part: str, seen: Tensor) -> Tensor:
    """[k, b, N, C] what a connector adapter makes of visual tokens [k, b, N, d_v]."""
    module = pack.backbone.module(pack.backbone.check_connector().name)
    w = {name.rpartition("/")[2]: batch.of(value) for name, value in pack.params(part).items()}
    x = seen.flatten(1, 2)
    return ConnectorAdapter().apply(module, w, x, x).view(*seen.shape[:3], -1)


def alike(x: Tensor, y: Tensor, rows: Tensor, form: Form = "tokens") -> Tensor:
    """L_d [k] of features [k, b, N, C] of the rows [k, b] bool: ‖Xᵀ Y‖² = ⟨X Xᵀ, Y Yᵀ⟩, by which no matrix of C × C is made.

    Of tokens: the rows of X are those of a picture, of unit length; over N²; the mean over pictures, from 0 (columns of X and Y
    are orthogonal) to 1. As the code does: rows are whole pictures [N·C], over their norms, which have no gradient; over (N·C)².
    """
    if form == "tokens":
        x, y = (F.normalize(z, dim=-1) for z in (x, y))
        return mean_of(((x @ x.mT) * (y @ y.mT)).mean((-2, -1)), rows)
    x, y = (z.flatten(2) * rows.unsqueeze(-1) for z in (x, y))
    x, y = (z / (z.detach().norm(dim=-1, keepdim=True) + 1e-6) for z in (x, y))
    return ((x @ x.mT) * (y @ y.mT)).sum((-2, -1)) / x.shape[-1] ** 2


def imbalance(logits: Tensor) -> Tensor:
    """L_b [...] of router logits [..., N, E]: E Σ_e f_e p_e, f the shares of tokens by their first expert, p the mean shares."""
    first = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits).mean(-2)
    return logits.shape[-1] * (first * torch.softmax(logits, -1).mean(-2)).sum(-1)


def sizes(logits: Tensor) -> Tensor:
    """L_z [...] of router logits [..., N, E]: the mean over tokens of log² Σ_e exp."""
    return logits.logsumexp(-1).square().mean(-1)
