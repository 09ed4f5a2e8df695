"""Powder: prompts of tasks that arrive over time, mixed by how alike the tasks are, and distillation from what was received.

H. Piao, Y. Wu, D. Wu, Y. Wei, "Federated Continual Learning via Prompt-based Dual Knowledge Transfer", ICML 2024 (PMLR 235).
Code: piaohongming/Powder.

A client in a period is a task g. For each of three blocks it has prompts P_g [M, L, d], keys K_g and attentions A_g [M, d], which
begin orthogonal to all that there are. Tasks know each other by a matrix W, estimated as a period begins: with m_g the mean over
the task's pictures of the weights a below, for the pools of all tasks,

    W[u, v] ∝ max(cos(m_u, m_v), 0)^30,   rows of sum 1.

The pool of task i is P̄_i = Σ_j W[i, j] P_j, and so are K̄_i, Ā_i. A picture of task g, whose query q is what the head of the
frozen model reads, gets L tokens at each block from the pools of the tasks i with the three largest W[g, i]:

    a_{i,m} = cos(q ⊙ Ā_{i,m}, K̄_{i,m}),   tokens = Σ_i Σ_m a_{i,m} P̄_{i,m} / 3.

A client moves P_g, K_g, A_g and its head; what others add to its pools stays. Its loss is cross-entropy + τ² Σ_b w_b KL(teacher ‖
student) over the classes of the task without the true one. The teacher is what it received, and w, a softmax over the rows of a
step, is the larger, the more other tasks know of the row's class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.aggregation import orthonormal
from weft.aggregation.task_similarity import shared, similar
from weft.contract import (
    PERSONAL,
    SENT,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    Bench,
    Bounded,
    ClientInfo,
    Count,
    Init,
    Integers,
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
    Shape,
    Task,
    Update,
    UserError,
    Values,
    Whole,
)

MATCH = "match"
"""The kind of a round in which clients tell what their pictures attend to."""
TASKS, ALIKE = "tasks", "W"
SEEN, BY_CLASS, CLASSES = "match", "match by class", "classes"
SHARE = "share"
"""[T, top] of each pool of the tasks that were told, how much of it is the client's own."""
KNOWN = "known"
"""[C] how much other tasks know of each class, see :func:`weft.aggregation.task_similarity.shared`."""
Id = tuple[str, int]
"""A client and a period."""


class Book(NamedTuple):
    """What the server knows of tasks.

    Attributes:
        tasks: all that have begun, in that order. alike: W [S, S].
    """

    tasks: list[Id]
    alike: Tensor


class Powder(Method):
    """Defaults of the code for ImageNet-R, with the task of each picture known (its main setting).

    Attributes:
        blocks: that tokens enter; ``none``: 4, 5 and 6 of twelve, as in the code, and the same shares of any other depth.
        components: M, prompts of a task at a block. tokens: L.
        top: pools that a picture gets tokens of. power: of similarities of tasks. class_top, class_power: the same of classes.
        distil: weight of the distillation. tau: τ, its temperature.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="powder",
        title="Prompts of tasks that arrive over time, mixed by how alike the tasks are",
        paper="Piao et al., ICML 2024",
        family="prompts",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "All clients go on to their next task with each period, where half of the code's do. The rows of a head stay at "
            "their client: no other task reads them, and the code sends them all the same. A client receives the mixtures that "
            "others add to its pools, not their prompts. Similarities below zero count as none before they are raised to the "
            "30th power. The learning rate is constant, where the code's falls by 5 % within a round. Where a backbone is too "
            "narrow for prompts orthogonal to all earlier ones, they are orthogonal among themselves; the code then does not "
            "end. A client that never trained is scored with the first task's prompts."
        ),
        views=("personal",),
        sends=(
            "the prompts of its present task, and as a period begins the mean attention that its pictures give to all prompts, "
            "in all and by class"
        ),
        tells=("periods", "pools"),
        needs=("images", "head", "all updates", "own steps"),
    )
    demands: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    blocks: tuple[Whole, ...] | None = None
    components: Count = 10
    tokens: Count = 8
    top: Count = 3
    power: Positive = 30.0
    class_top: Count = 3
    class_power: Positive = 30.0
    distil: NonNegative = 1.0
    tau: Positive = 3.0
    epochs: Positive = 10.0
    batch: Count = 64
    optim: Optim = Optim("adamw", lr=0.005, schedule="constant")

    @property
    def gives_away(self) -> str:
        return "sends ids of classes, which have no norm"

    @property
    def sees_rows(self) -> str:
        return "finds keys of all of a client's rows"

    @property
    def sums(self) -> bool:
        return False

    def at(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that tokens enter.

        Raises:
            UserError: the backbone lacks one of them.
        """
        depth = len(backbone.blocks)
        if self.blocks is None:
            return tuple(sorted({min(round(depth * share / 12), depth - 1) for share in (4, 5, 6)}))
        if not self.blocks or list(self.blocks) != sorted(set(self.blocks)) or self.blocks[-1] >= depth:
            raise UserError(
                f'powder puts tokens into different blocks of "{backbone.name}", in their order, of 0 to {depth - 1}: set '
                "method.blocks to such as 0,1, or leave it out."
            )
        return self.blocks

    def shapes(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a task, by role and block: P.4, K.4, A.4 …"""
        one = (self.components, backbone.features)
        each: dict[str, tuple[int, ...]] = {"P": (self.components, self.tokens, backbone.d), "K": one, "A": one}
        return {f"{role}.{block}": shape for block in self.at(backbone) for role, shape in each.items()}

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        backbone.check_more_tokens()
        own = tuple((name, Init(shape)) for name, shape in self.shapes(backbone).items())
        rest = tuple((name, Init((self.top, *shape))) for name, shape in self.shapes(backbone).items())
        shares = ("share", Init((self.top,))), ("there", Init((self.top,)))
        return {"own": (Values(own), SENT), "rest": (Values((*rest, *shares)), TEMPORARY), "head": (task.head, PERSONAL)}

    # server ---------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        """
        Raises:
            UserError: the task of a row is not known, or a period leaves no exchange to train in.
        """
        bench = server.bench
        if bench.arrivals is not None and bench.table.allowed is None:
            raise UserError("powder knows the task of each picture: give --incremental task with --periods.")
        if 1 < server.periods > server.rounds // 2:
            raise UserError(
                f"powder takes the first exchange of each period to match tasks: {server.rounds} rounds leave none to train in "
                f"some of {server.periods}; give {2 * server.periods} or more."
            )
        server.memo[TASKS] = []

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        begins = t == 0 or server.period_at(t) != server.period_at(t - 1)
        return Round(t, MATCH, "all") if begins else Round(t)

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        found: dict[str, Shape] = {KNOWN: (len(bench.task.classes),), SHARE: (None, self.top)}
        for name, shape in self.shapes(bench.backbone).items():
            found |= {f"own/{name}": shape, f"rest/{name}": (None, self.top, *shape), f"pool/{name}": (None, *shape)}
        return found

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        blocks, seen = len(self.at(server.bench.backbone)), len(server.memo.get(TASKS, [])) * self.components
        classes = Bounded((None,), len(server.bench.task.classes))
        match: dict[str, Shape] = {SEEN: (blocks, seen), BY_CLASS: (None, blocks, seen), CLASSES: classes}
        return match if server.round.kind == MATCH else {}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message, book, me = server.stale(client), self.book(server), (client.id, server.round.period)
        if me not in book.tasks:
            return self.with_pools(server, message, book, book.tasks[:1], None)
        if server.round.kind == MATCH:
            for name in (n for n in self.shapes(server.bench.backbone) if n[0] != "P"):
                message.tensors[f"pool/{name}"] = self.mixed(server, name, book.tasks, book.alike)
            return message
        for name in self.shapes(server.bench.backbone):
            message.tensors[f"own/{name}"] = server.memo[of(name, me)]
        nothing = torch.zeros(len(server.bench.task.classes), dtype=server.bench.dtype)
        message.tensors[KNOWN] = server.memo.get(of(KNOWN, me), nothing)
        return self.with_pools(server, message, book, [me], me)

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        book = self.book(server)
        mine = [g for g in reversed(book.tasks) if g[0] == client.id]
        return self.with_pools(server, server.stale(client), book, mine or book.tasks[:1], None)

    def with_pools(self, server: ServerState, message: Message, book: Book, told: list[Id], me: Id | None) -> Message:
        """The pools of some tasks, the present one first: what others than ``me`` make of each, and its own share in it."""
        rows = torch.stack([book.alike[book.tasks.index(g)] for g in told])
        best = rows.topk(min(self.top, len(book.tasks))).indices  # [T, top]
        share = torch.zeros(len(told), self.top, dtype=server.bench.dtype)
        weights = book.alike[best]  # [T, top, S]
        if me is not None:
            at = book.tasks.index(me)
            share[:, : best.shape[1]] = weights[..., at]
            weights[..., at] = 0
        for name, shape in self.shapes(server.bench.backbone).items():
            rest = torch.zeros(len(told), self.top, *shape, dtype=server.bench.dtype)
            rest[:, : best.shape[1]] = self.mixed(server, name, book.tasks, weights)
            message.tensors[f"rest/{name}"] = rest
        message.tensors[SHARE] = share
        message.facts |= {"periods": [period for _, period in told], "pools": best.shape[1]}
        return message

    def book(self, server: ServerState) -> Book:
        """Tasks of the present period begin when they are first asked for; one that was matched with none knows itself alone."""
        tasks: list[Id] = [(str(client), int(period)) for client, period in server.memo[TASKS]]
        begun = set(tasks)
        for me in ((client.id, server.round.period) for client in server.clients):
            if me in begun:
                continue
            for name, shape in self.shapes(server.bench.backbone).items():
                width = math.prod(shape[1:])
                earlier = [server.memo[of(name, g)].reshape(-1, width) for g in tasks]
                before = torch.cat([torch.zeros(0, width, dtype=server.bench.dtype), *earlier])
                draw = server.generator("powder", name, *me)
                server.memo[of(name, me)] = orthonormal.beside(before, self.components, draw).view(shape)
            tasks.append(me)
        server.memo[TASKS] = [list(g) for g in tasks]
        alike, known = torch.eye(len(tasks), dtype=server.bench.dtype), server.memo.get(ALIKE)
        if known is not None:
            alike[: len(known), : len(known)] = known
        return Book(tasks, alike)

    def mixed(self, server: ServerState, name: str, tasks: list[Id], weights: Tensor) -> Tensor:
        """Σ_j w_j of the tensors of tasks j, for weights [..., S]."""
        found = torch.zeros(*weights.shape[:-1], *self.shapes(server.bench.backbone)[name], dtype=server.bench.dtype)
        for w, g in zip(weights.unbind(-1), tasks, strict=True):
            if w.any():
                value = server.memo[of(name, g)]
                found = found + w.view(*w.shape, *[1] * value.dim()) * value
        return found

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        for update in updates:
            me = (update.client.id, server.round.period)
            if server.round.kind != MATCH:
                for name, value in update.tensors.items():
                    server.memo[of(name.rsplit("/", 1)[1], me)] = value
                continue
            classes, of_class = update.tensors.get(CLASSES), update.tensors.get(BY_CLASS)
            if isinstance(classes, Integers) and isinstance(of_class, Tensor) and len(of_class) == len(classes.values):
                server.memo |= {of(SEEN, me): update.tensors[SEEN], of(BY_CLASS, me): of_class}
                server.memo[of(CLASSES, me)] = classes.values.tolist()
        if server.round.kind == MATCH:
            self.match_all(server)

    def match_all(self, server: ServerState) -> None:
        """W, and how much other tasks know of each class of the tasks of this period."""
        tasks, memo = self.book(server).tasks, server.memo
        alike = similar([memo.get(of(SEEN, g)) for g in tasks], self.power)
        memo[ALIKE] = alike / alike.sum(1, keepdim=True)
        entries = [
            (g, y, v) for g in tasks for y, v in zip(memo.get(of(CLASSES, g), []), memo.get(of(BY_CLASS, g), []), strict=True)
        ]
        known = shared([v for *_, v in entries], [g for g, *_ in entries], self.class_power, self.class_top)
        for me in (g for g in tasks if g[1] == server.round.period):
            mine = torch.zeros(len(server.bench.task.classes), dtype=server.bench.dtype)
            for (g, y, _), value in zip(entries, known, strict=True):
                if g == me:
                    mine[y] = value
            memo[of(KNOWN, me)] = mine

    # client ---------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        """The tensors and the pools of the present task are those that came."""
        for part, name in (n.split("/values/") for n in pack.params("own", "rest")):
            came = [received.get(f"{part}/{name}") for received in pack.received]
            if all(isinstance(value, Tensor) for value in came):
                values = torch.stack([v for v in came if isinstance(v, Tensor)]).to(pack.device, pack.dtype)
                pack.tensors[f"{part}/values/{name}"] = values if part == "own" else values[:, 0]
        shares = [self.shares(pack, k, 0) for k in range(len(pack.clients))]
        for name, some in zip(("share", "there"), zip(*shares, strict=True), strict=True):
            pack.tensors[f"rest/values/{name}"] = torch.stack(some)

    def shares(self, pack: Pack, k: int, t: int) -> tuple[Tensor, Tensor]:
        """[top] a client's share in each pool of the t-th task, and 1 over their number for each that there is."""
        told = pack.received[k].get(SHARE)
        share = told[t].to(pack.device, pack.dtype) if isinstance(told, Tensor) else pack.tensors["rest/values/share"][k]
        number = pack.facts[k].get("pools", self.top)
        return share, (torch.arange(self.top, device=pack.device) < number).to(pack.dtype) / number

    def query(self, pack: Pack, batch: Batch) -> Tensor:
        """q [k, b, d]."""
        with torch.no_grad():
            return pack.features(batch, use={})

    def prompts(self, pack: Pack, batch: Batch) -> dict[int, Tensor]:
        """Block -> tokens [k, b, L, d] of each row, by the pools of its task."""
        query, task = self.query(pack, batch), self.task_of(pack, batch)
        here = {n.rsplit("/", 1)[1]: v for n, v in pack.params("rest").items()}
        found: dict[int, Tensor] = {}
        for t in range(max(len(facts.get("periods", [0])) for facts in pack.facts)):
            pools = {n: batch.of(v) for n, v in (self.earlier(pack, t) if t else here).items()}
            for block in self.at(pack.backbone):
                p, k, a = (self.pooled(pack, batch, f"{role}.{block}", pools) for role in "PKA")
                weight = F.cosine_similarity(query[:, :, None, None] * a[:, None], k[:, None], dim=-1)  # [k, b, top, M]
                weight = weight * pools["there"][:, None, :, None] * (task == t)[..., None, None]
                tokens = torch.einsum("kbtm,ktmld->kbld", weight, p)
                found[block] = found[block] + tokens if block in found else tokens
        return found

    def pooled(self, pack: Pack, batch: Batch, name: str, pools: Mapping[str, Tensor]) -> Tensor:
        """[k, top, M, …] the pools of a task: what others made of them, and the client's own share."""
        own = batch.of(pack.tensors[f"own/values/{name}"]).unsqueeze(1)
        return pools["share"].view(*pools["share"].shape, *[1] * (own.dim() - 2)) * own + pools[name]

    def earlier(self, pack: Pack, t: int) -> dict[str, Tensor]:
        """[K, top, …] pools of the t-th task that was told, and shares; of clients that have fewer, of their first."""
        at = [t if t < len(facts.get("periods", [0])) else 0 for facts in pack.facts]
        found = {}
        for name in self.shapes(pack.backbone):
            came = [tensor_of(received, f"rest/{name}")[i] for i, received in zip(at, pack.received, strict=True)]
            found[name] = torch.stack(came).to(pack.device, pack.dtype)
        both = [self.shares(pack, k, i) for k, i in enumerate(at)]
        return found | {name: torch.stack(some) for name, some in zip(("share", "there"), zip(*both, strict=True), strict=True)}

    def task_of(self, pack: Pack, batch: Batch) -> Tensor:
        """[k, b] which of the tasks that were told each row is of; the present one, where nothing is known of it."""
        arrivals, told = pack.bench.arrivals, [facts.get("periods", [0]) for facts in pack.facts]
        if arrivals is None:
            return torch.zeros(batch.index.shape, dtype=torch.long, device=pack.device)
        width = max(map(len, told))
        known = batch.of(torch.tensor([some + [some[0]] * (width - len(some)) for some in told], device=pack.device))
        periods = torch.from_numpy(arrivals.of_row[pack.bench.table.row_of(batch.index)]).to(pack.device)
        return (known.unsqueeze(1) == periods.unsqueeze(-1)).to(torch.uint8).argmax(-1)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, insert=self.prompts(pack, batch))

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == MATCH:
            return self.match(pack)
        received = {n: v.detach().clone() for n, v in pack.params("own", "head").items()}
        return self.fit(pack, ("own", "head"), lambda p, b: self.loss(p, b, received))

    def loss(self, pack: Pack, batch: Batch, received: Mapping[str, Tensor]) -> Tensor:
        """[k]; before anything was trained there is no teacher."""
        out = self.forward(pack, batch)
        loss = pack.loss(out, batch)
        if not self.distil or pack.round.index == 1:
            return loss
        with torch.no_grad(), pack.values(received):
            teacher = self.forward(pack, batch)
        return loss + self.distil * self.not_true(pack, batch, out, teacher)

    def not_true(self, pack: Pack, batch: Batch, student: Output, teacher: Output) -> Tensor:
        """τ² Σ_b w_b KL(teacher ‖ student) over the classes of the task without the true one, [k]."""
        classes = len(pack.task.classes)
        others = ~F.one_hot(batch.labels, classes).bool()
        others = others if batch.allowed is None else others & batch.allowed
        p, log_q = (torch.log_softmax(out.logits.masked_fill(~others, -1e9) / self.tau, -1) for out in (teacher, student))
        each = (p.exp() * (p - log_q)).masked_fill(~others, 0.0).sum(-1)  # [k, b]; 0 where there is no other class
        known = torch.stack([tensor_of(received, KNOWN) for received in pack.received]).to(pack.device, pack.dtype)
        weight = batch.of(known).gather(1, batch.labels).masked_fill(~batch.mask, -1e9).softmax(1)
        return self.tau**2 * (weight * each * batch.mask).sum(1)

    @torch.no_grad()
    def match(self, pack: Pack) -> Iterable[Update]:
        """The mean attention that pictures give to the pools of all tasks, by class and over classes."""
        if not pack.has_work():
            return []
        blocks, classes = self.at(pack.backbone), len(pack.task.classes)
        pool = {}
        for name in (n for n in self.shapes(pack.backbone) if n[0] != "P"):
            came = [tensor_of(received, f"pool/{name}") for received in pack.received]
            pool[name] = torch.stack(came).to(pack.device, pack.dtype)
        seen = next(iter(pool.values())).shape[1] * self.components
        sums = torch.zeros(len(pack.clients), classes, len(blocks), seen, dtype=pack.dtype, device=pack.device)
        count = torch.zeros(len(pack.clients), classes, dtype=pack.dtype, device=pack.device)
        for batch in pack.batches(1.0, None, self.batch, stream=MATCH):
            query = self.query(pack, batch)
            of_class = F.one_hot(batch.labels, classes).to(pack.dtype) * batch.mask.unsqueeze(-1)
            who = torch.arange(len(query), device=pack.device) if batch.clients is None else batch.clients
            count.index_add_(0, who, of_class.sum(1))
            for i, block in enumerate(blocks):
                k, a = (batch.of(pool[f"{role}.{block}"]).unsqueeze(1) for role in "KA")
                weight = F.cosine_similarity(query[:, :, None, None] * a, k, dim=-1).flatten(2)  # [k, b, S·M]
                sums[:, :, i].index_add_(0, who, torch.einsum("kbc,kbn->kcn", of_class, weight))
        return pack.updates(tensors=[told(*pair) for pair in zip(sums.cpu(), count.cpu(), strict=True)])


def of(name: str, g: Id) -> str:
    """What something of a task is called in the server's memory."""
    return f"{name}/{g[0]}/{g[1]}"


def told(sums: Tensor, count: Tensor) -> dict[str, Any]:
    """What a client says of its pictures: means by class, the classes, and the mean over them."""
    there = count.nonzero().flatten()
    by_class = sums[there] / count[there, None, None]
    mean = by_class.mean(0) if len(there) else sums.sum(0)
    return {SEEN: mean, BY_CLASS: by_class, CLASSES: Integers(there, len(count))}


def tensor_of(received: Mapping[str, Any], name: str) -> Tensor:
    value = received[name]
    assert isinstance(value, Tensor)
    return value
