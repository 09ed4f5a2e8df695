"""FedHPL: clients with different backbones tune private visual prompts; class-wise logits are all that travels.

Y. Ma, L. Cheng, Y. Wang, Z. Zhong, X. Xu, M. Wang, "FedHPL: Efficient Heterogeneous Federated Learning with Prompt Tuning and
Logit Distillation", 2024, arXiv 2405.17267. No official code.

RECONSTRUCTED: neither the paper's formulas nor its hyper-parameters could be read. Known are: a frozen backbone per client,
prompts beside the patches, a simple head, only logits of correctly predicted examples go up, weights by prediction accuracy, a
table for each client comes back and is distilled. How the weights are made of accuracies, what makes the table differ between
clients, and every number are fillings; name the variant with every result.

Up: Z_k [C, C], row c the mean logits of the client's correctly predicted examples of class c, and accuracies a_k [C].
Down: Ẑ_k [C, C], row c = Σ_j w_j Z_j[c], w_j ∝ a_{j,c}.
Locally: cross-entropy + γ·τ²·KL(softmax(Ẑ_k[y]/τ) ‖ softmax(z/τ)) for classes with a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.aggregation.tables import Mixing, Receiver, contributions, mix
from weft.contract import (
    GIVEN,
    PERSONAL,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    ImageTokens,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Pack,
    Positive,
    ServerState,
    Task,
    Update,
    Values,
    distillation,
)

TEACHER = "teacher/values/logits"


class FedHPL(Method):
    """Every default is a filling.

    Attributes:
        tokens: visual prompt tokens. deep: new ones at every block.
        gamma: γ, weight of the distillation. temperature: τ.
        mixing: weights of the clients' rows: ``accuracy``, ``accuracy_softmax`` (∝ exp(a/0.1)), ``uniform``, or ``count``, of
            correct examples, which travel instead of the accuracies then.
        receiver: what makes a table the client's own: ``none``, ``leave_self_out`` or ``similarity`` (∝ exp(cos of the rows)).
        stale: keep the newest table of clients that are not in the cohort.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedhpl",
        title="Private visual prompts on different backbones; class-wise logits are mixed and distilled",
        paper="Ma et al., arXiv 2024",
        arxiv="2405.17267",
        family="prompts",
        challenges=("computational heterogeneity", "data heterogeneity"),
        evidence="reconstructed",
        deviations=(
            "Reconstructed: how accuracies become weights, what makes a table the client's own, the form of the distillation and "
            "every number are fillings."
        ),
        views=("personal",),
        sends="mean logits of its correctly predicted examples, per class, and its accuracy on each class",
        tells=("known",),
        needs=("images", "head", "all updates"),
    )

    demands: ClassVar[tuple[str, ...]] = ("logits", "accuracy", "count")
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    tokens: Count = 10
    deep: bool = False
    gamma: NonNegative = 1.0
    temperature: Positive = 2.0
    mixing: Mixing = "accuracy"
    receiver: Receiver = "none"
    stale: bool = False
    epochs: Positive = 1.0
    batch: Count = 64
    optim: Optim = Optim("sgd", lr=0.05, momentum=0.9, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "sends what a client predicts for its rows of each class"

    @property
    def sums(self) -> bool:
        return False

    @property
    def quality(self) -> str:
        """What travels beside the logits."""
        return "count" if self.mixing == "count" else "accuracy"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        classes = len(task.classes)
        return {
            "prompt": (ImageTokens(self.tokens, self.deep), PERSONAL),
            "head": (task.head, PERSONAL),
            "teacher": (Values((("logits", (classes, classes)),)), GIVEN),
        }

    # client ---------------------------------------------------------------------------------------------------------

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        out = self.forward(pack, batch)
        loss = pack.loss(out, batch)
        known = [set(facts.get("known", ())) for facts in pack.facts]
        if not self.gamma or not any(known):
            return loss
        taught = torch.tensor([[c in k for c in range(out.logits.shape[-1])] for k in known], device=pack.device)
        rows = batch.of(pack.tensors[TEACHER]).gather(1, batch.labels.unsqueeze(-1).expand_as(out.logits))
        mask = batch.mask & batch.of(taught).gather(1, batch.labels)
        # the mean is over the taught rows: an example without a teacher takes no part
        return loss + self.gamma * distillation(rows, out, mask, self.temperature, batch.allowed)

    def train(self, pack: Pack) -> Iterable[Update]:
        self.fit(pack, only=("prompt", "head"))
        rows = [c.data.train for c in pack.clients]
        logits = pack.predict(self.forward, rows)
        found = [table_of(z.to(pack.dtype), torch.from_numpy(pack.labels(own))) for z, own in zip(logits, rows, strict=True)]
        quality = {"accuracy": 1, "count": 2}[self.quality]
        return pack.updates(tensors=[{"logits": f[0], self.quality: f[quality]} for f in found])

    # server ---------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        classes = len(server.bench.task.classes)
        return {"logits": (classes, classes), self.quality: (classes,)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)
        if not received:
            return
        memo, new = server.memo, {u.client.id: u.tensors for u in received}
        old = {client: i for i, client in enumerate(memo.get("ids", []))} if self.stale else {}
        ids = sorted(old.keys() | new.keys())
        for name in ("logits", self.quality):
            rows: list[Any] = [new[i][name] if i in new else memo[name][old[i]] for i in ids]
            memo[name] = torch.stack(rows)
        memo["ids"] = ids

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        memo = server.memo
        if "ids" not in memo:
            return Message()
        me = memo["ids"].index(client.id) if client.id in memo["ids"] else None
        table, known = mix(memo["logits"], contributions(memo[self.quality], self.mixing), me, self.receiver)
        return Message({TEACHER: table}, {"known": known.nonzero().flatten().tolist()})


def table_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean logits [C, C] of the correctly predicted rows of a class, accuracy [C], number of correct rows [C]; 0 without any."""
    classes = logits.shape[1]
    right = logits.argmax(1) == labels
    member = torch.nn.functional.one_hot(labels, classes).to(logits.dtype)
    correct = member * right.unsqueeze(1)
    count, rows = correct.sum(0), member.sum(0)
    return correct.T @ logits / count.clamp(min=1).unsqueeze(1), count / rows.clamp(min=1), count
