"""FedPCL: frozen encoders, a projection that stays at home, and class prototypes, which are all that travels.

Y. Tan, G. Long, J. Ma, L. Liu, T. Zhou, J. Jiang, "Federated Learning from Pre-Trained Models: A Contrastive Learning Approach",
NeurIPS 2022, arXiv 2209.10083. Code: yuetan031/FedPCL.

z(x) = normalised relu of a linear layer over what the frozen model's head would read; of several encoders, side by side. Up: of
each class that a client has the mean z of its rows, C_k^y. Down: those of all clients, and their means over clients, C^y. Where
client p lacks a class, C^y stands for its own. A client moves its projection down

    -log softmax_a(z·C^a/τ)[y] - 1/m Σ_p log softmax_a(z·C_p^a/τ)[y],

and predicts the class of its own nearest prototype. In the first round there are none, and nobody trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    PERSONAL,
    Adaptation,
    Backbone,
    Batch,
    Bench,
    ClientInfo,
    Count,
    Init,
    Message,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Round,
    ServerState,
    Task,
    Update,
    UserError,
    Values,
    Weighting,
    mean_of,
)

OWN, HAS = "own/values/prototypes", "own/values/has"
LOCAL, MEANS = "prototypes/local", "prototypes/means"

NEVER = -100.0
"""The logit of a class that a client has no prototype of."""

MOST = 10**9
"""Rows of a class that a client may tell of."""


class Told(NamedTuple):
    """What everybody is told in a round.

    Attributes:
        local: [m, C, width] prototypes of m clients, means where one lacks a class. means: [C, width]. known: [C] bool.
    """

    local: Tensor
    means: Tensor
    known: Tensor


class FedPCL(Method):
    """The paper's loss, with the settings of the code.

    Attributes:
        width: of the projection. tau: τ.
        loss: ``prototypes``, the paper's, contrasts a row with the prototypes of all classes. ``rows``, the code's, contrasts the
            prototypes C_p^y of a row's class with the rows of the step: those of its class against all but the row itself, each
            row in both of its views; it has no term of the means.
        negatives: of the paper's loss: ``all`` classes, or the ``others``, which leave the row's own out of the sum.
        weighting: of clients in the mean of a class: ``uniform``, or ``examples``, by their rows of it, which they tell then.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedpcl",
        title="Class prototypes through frozen encoders travel; projections at home learn by contrast with them",
        paper="Tan et al., NeurIPS 2022",
        arxiv="2209.10083",
        family="selective",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="code",
        deviations=(
            "Encoders are image transformers and CLIPs (several as --model a+b), where the paper has ResNet-18s too. A row is "
            "its own second view, undisturbed, where the paper crops it twice at random; with --views it has two of these, the "
            "same in every round. The loss is the paper's, by prototypes; "
            "the code's, by the rows of a step, is an option, and a mean over clients where the code has a sum. Weight decay is "
            "AdamW's. In the first round, which has no prototypes, nothing moves, where the code's decay does. A client that is "
            "away is there with its last prototypes."
        ),
        views=("personal",),
        sends="the mean representation of its rows of each class that it has, which every other client gets to see",
        tells=("classes",),
        reveals=("counts",),
        needs=("classes", "all classes", "all updates"),
    )

    width: Count = 256
    tau: Positive = 0.07
    loss: Literal["prototypes", "rows"] = "prototypes"
    negatives: Literal["all", "others"] = "all"
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3, weight_decay=1e-4, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "sends means over the rows of each class"

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if task.kind != "classification":
            raise UserError(
                "fedpcl makes prototypes of classes, and this task has none: choose data with classes, or another method."
            )
        classes = len(task.classes)
        d = backbone.features
        linear = {
            n: Init(shape, "uniform", 1 / math.sqrt(d)) for n, shape in (("weight", (self.width, d)), ("bias", (self.width,)))
        }
        return {
            "projection": (Values(tuple(linear.items())), PERSONAL),
            "own": (Values((("prototypes", (classes, self.width)), ("has", (classes,)))), PERSONAL),
        }

    def plan(self, server: ServerState, t: int) -> Round | None:
        return Round(t, "train" if t else "prototypes") if t < server.rounds else None

    # client ---------------------------------------------------------------------------------------------------------

    def represent(self, pack: Pack, batch: Batch) -> Tensor:
        """z [k, b, width]: of unit length, and nowhere negative."""
        with torch.no_grad():
            read = pack.features(batch, use={})
        weight, bias = (batch.of(pack.tensors[f"projection/values/{n}"]) for n in ("weight", "bias"))
        return F.normalize(F.relu(read @ weight.mT + bias.unsqueeze(1)), dim=-1)

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        z = self.represent(pack, batch)
        if not pack.received[0]:
            return z.sum((1, 2)) * 0.0
        twin = z if (again := pack.seen_again(batch)) is batch else self.represent(pack, again)
        told = told_to(pack)
        mask = batch.mask & told.known[batch.labels]
        if self.loss == "rows":
            return mean_of(self.by_rows(torch.cat([z, twin], 1), batch.labels, mask, told), mask)
        prototypes = torch.cat([told.means.unsqueeze(0), told.local])
        each = [self.by_prototypes(view, batch.labels, prototypes, told.known) for view in ([z] if twin is z else [z, twin])]
        return mean_of(torch.stack(each).mean(0), mask)

    def by_prototypes(self, z: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        """The paper's loss of each row, [k, b].

        Args:
            prototypes: [1 + m, C, width], the means first. known: [C] bool.
        """
        scores = torch.einsum("kbo,pco->kbpc", z, prototypes) / self.tau
        mine = F.one_hot(labels, len(known)).bool().unsqueeze(2)
        right = scores.masked_fill(~mine, 0.0).sum(-1)
        against = known & ~mine if self.negatives == "others" else known.expand_as(mine)
        none = ~against.any(-1, keepdim=True)  # the only class that anybody has
        each = scores.masked_fill(~(against | none), -torch.inf).logsumexp(-1) - right
        each = each.masked_fill(none.squeeze(-1), 0.0)
        return each[..., 0] + each[..., 1:].mean(-1)

    def by_rows(self, z: Tensor, labels: Tensor, mask: Tensor, told: Told) -> Tensor:
        """The code's loss of each row, [k, b], as the mean over clients and both views.

        Args:
            z: [k, 2b, width], of the first views and of the second ones. mask: [k, b] bool, the rows that take part.
        """
        labels, mask = labels.repeat(1, 2), mask.repeat(1, 2)
        scores = torch.einsum("mkio,kjo->mkij", told.local[:, labels], z) / self.tau
        row = torch.arange(z.shape[1], device=z.device) % (z.shape[1] // 2)
        itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        times = ((mask.unsqueeze(1) | (row.unsqueeze(1) == row)) & ~itself).to(z)  # its other view, and both of other rows
        like = times * (labels.unsqueeze(2) == labels.unsqueeze(1))
        away = (scores + times.log()).logsumexp(-1, keepdim=True) - scores
        each = ((like * away).sum(-1) / like.sum(-1)).mean(0)
        return each.view(len(z), 2, -1).mean(1)

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.received[0]:
            self.fit(pack, only=("projection",))
        found = self.remember(pack)
        tensors = [{f"prototypes/{c}": p for c, (p, _) in mine.items()} for mine in found]
        facts = [{"counts": [n for _, n in mine.values()]} if self.weighting == "examples" else {} for mine in found]
        return pack.updates(facts, tensors)

    def remember(self, pack: Pack, clients: Tensor | None = None) -> list[dict[int, tuple[Tensor, int]]]:
        """Make the mean z of each client's rows of a class its own prototype; each one's, by class, with the number of rows.

        Args:
            clients: [K] bool, who does; None = all. One without rows keeps what it has.
        """
        rows = [c.data.train for c in pack.clients]
        found = []
        own, has = (pack.tensors[n].clone() for n in (OWN, HAS))
        seen = pack.predict(lambda p, b: Output(self.represent(p, b)), rows, dtype=pack.dtype)
        for k, (z, index) in enumerate(zip(seen, rows, strict=True)):
            y = torch.from_numpy(pack.labels(index))
            mine = {int(c): (z[y == c].mean(0), int((y == c).sum())) for c in y.unique()}
            found.append(mine)
            if mine and (clients is None or clients[k]):
                own[k], has[k] = 0.0, 0.0
                for c, (prototype, _) in mine.items():
                    own[k, c], has[k, c] = prototype.to(own), 1.0
        pack.tensors[OWN], pack.tensors[HAS] = own, has
        return found

    def personalise(self, pack: Pack) -> None:
        self.remember(pack, torch.tensor([c.rounds_seen == 0 for c in pack.clients]))

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        z, own, has = self.represent(pack, batch), batch.of(pack.tensors[OWN]), batch.of(pack.tensors[HAS])
        lengths = z.square().sum(-1, keepdim=True) + own.square().sum(-1).unsqueeze(1)
        far = (lengths - 2 * z @ own.mT) / self.width
        return Output(torch.where(has.unsqueeze(1) > 0, -far, torch.full_like(far, NEVER)))

    # server ---------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {f"prototypes/{c}": (self.width,) for c in range(len(server.bench.task.classes))}

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {LOCAL: (None, self.width), MEANS: (None, self.width)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        memo = server.memo
        known: dict[str, tuple[list[Tensor], list[int], list[int]]] = {}
        rows = iter(memo.get(LOCAL, ()))
        for i, classes, counts in zip(memo.get("ids", ()), memo.get("classes", ()), memo.get("counts", ()), strict=True):
            known[i] = [next(rows) for _ in classes], classes, counts
        for update in updates:
            sent = {int(n.split("/")[1]): v for n, v in update.tensors.items() if isinstance(v, Tensor)}
            classes = sorted(sent)
            counts = self.counts_of(update, len(classes))
            if classes and counts:
                known[update.client.id] = [sent[c] for c in classes], classes, counts
        if not known:
            return
        found = [known[i] for i in sorted(known)]
        memo["ids"], memo["classes"], memo["counts"] = sorted(known), [c for _, c, _ in found], [n for _, _, n in found]
        memo[LOCAL] = torch.stack([row for own, _, _ in found for row in own])
        memo[MEANS] = means_of(memo[LOCAL], *(list(chain.from_iterable(memo[n])) for n in ("classes", "counts")))

    def counts_of(self, update: Update, classes: int) -> list[int]:
        """What each prototype of an update weighs in the mean of its class; nothing, if it tells no counts of them."""
        if self.weighting == "uniform":
            return [1] * classes
        told = update.facts.get("counts")
        if not isinstance(told, list) or len(told) != classes or not all(type(n) is int and 0 < n <= MOST for n in told):
            return []
        return told

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        memo: dict[str, Any] = server.memo
        if LOCAL not in memo:
            return Message()
        return Message({LOCAL: memo[LOCAL], MEANS: memo[MEANS]}, {"classes": memo["classes"]})

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return Message()  # it predicts with its own


def means_of(rows: Tensor, classes: list[int], counts: list[int]) -> Tensor:
    """[known, width] of the classes that there are, in their order, the mean of rows [n, width] by counts."""
    y, weights = torch.tensor(classes), torch.tensor(counts).to(rows).unsqueeze(1)
    return torch.stack([(rows * weights)[y == c].sum(0) / weights[y == c].sum() for c in y.unique()])


def told_to(pack: Pack) -> Told:
    """The prototypes that all clients of a pack have been told alike."""
    received, lists = pack.received[0], pack.facts[0]["classes"]
    rows, means = (torch.as_tensor(received[n]).to(pack.device, pack.dtype) for n in (LOCAL, MEANS))
    known = torch.zeros(len(pack.task.classes), dtype=torch.bool, device=pack.device)
    known[sorted({c for classes in lists for c in classes})] = True
    whole = torch.zeros(len(known), means.shape[1], dtype=pack.dtype, device=pack.device)
    whole[known] = means
    local = whole.repeat(len(lists), 1, 1)
    for one, mine, classes in zip(local, rows.split(list(map(len, lists))), lists, strict=True):
        one[classes] = mine
    return Told(local, whole, known)
