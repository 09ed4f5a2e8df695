"""C2A: one hypernetwork, averaged over clients, makes the adapters of each of them of its labels and of what it reads.

Y. Kim, J. Kim, W. Mok, J. Park, S. Lee, "Client-Customized Adaptation for Parameter-Efficient Federated Learning", Findings of
ACL 2023, arXiv 2411.00311. Code: yeachan-kr/c2a.

In each step, at both sublayers of each block l, of whose output s the client's rows are:

    u ← mean of s over a row's tokens, divided by its norm;  q ← shares of the classes among the client's rows
    e ← W_q q + E_l + W_u u;  v ← e Ĝ, with Ĝ the rows of P Q + g, divided by their norms
    s ← s + U gelu(D s + b_1) + b_2, with D = v as [d, r] and U = v as [r, d]

All of this network and the head are trained, sent, and averaged by numbers of examples; q and u stay where they are. Where labels
are unknown q is uniform.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    HyperAdapter,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Task,
    UserError,
)

SHARES = "hyper/values/given"
"""q: uniform, unless it is said."""


class C2A(Method):
    """Defaults of the code for XGLUE-NC.

    Attributes:
        rank: r. factor: c, of P [t·r, c] and Q [c, d]. embedding: t, the length of e.
        label_stat: q in training: the shares of the classes in all of a client's training rows (``client``, as the paper is
            recalled to have it), or in the batch (``batch``, the code), which tells the answer to a batch of one.
        context: u in training: of each row (``row``), as in tests, where a prediction should not depend on what else is
            predicted; or the mean over the batch (``batch``, the code).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="c2a",
        title="A shared hypernetwork makes adapters of a client's labels and of what it reads",
        paper="Kim et al., Findings of ACL 2023",
        arxiv="2411.00311",
        family="adapters",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "Of the paper the abstract was read, and its code. q are the shares of classes in all of a client's rows, which the "
            "code counts and leaves unused: it takes those in the batch (label_stat=batch). u is of each row, and in tests too, "
            "where the code has the mean over the batch (context=batch, of training alone); padding is no part of it, and norms "
            "that are divided by are at least 1e-8. A client without training rows has a uniform q."
        ),
        views=("global", "personal"),
        sends="the hypernetwork, the head, and the number of examples",
        needs=("classes",),
    )

    rank: Count = 16
    factor: Count = 32
    embedding: Count = 8
    label_stat: Literal["client", "batch"] = "client"
    context: Literal["row", "batch"] = "row"
    epochs: Positive = 1.0
    batch: Count = 64
    optim: Optim = Optim("adamw", lr=3e-4, weight_decay=1e-2, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "makes a client's adapters of the classes of all its rows"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        hyper = HyperAdapter(len(task.classes), self.rank, self.factor, self.embedding, self.context)
        scopes = {role: SHARED for site in hyper.sites(backbone) for role in hyper.tensors(backbone, site)}
        given = SHARES.rsplit("/", 1)[1]
        return {"hyper": (hyper, scopes | {given: GIVEN}), "head": (task.head, SHARED)}

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        shares = of_batch(pack, batch) if self.label_stat == "batch" else of_clients(pack)
        with pack.values({SHARES: shares}):
            return super().objective(pack, batch)

    def personalise(self, pack: Pack) -> None:
        pack.tensors[SHARES] = of_clients(pack)


def of_clients(pack: Pack) -> Tensor:
    """[K, C] the shares of the classes in each client's training rows; where it has none, those that it was given.

    Raises:
        UserError: a client without rows was given what can be no shares.
    """
    classes = len(pack.task.classes)
    counts = np.stack([np.bincount(pack.labels(c.data.train), minlength=classes) for c in pack.clients])
    given = pack.tensors[SHARES]
    for client, told, own in zip(pack.clients, given, counts.sum(1).tolist(), strict=True):
        if not own:  # labels of rows are classes, so that theirs always add up
            check(told, client.id)
    found = torch.from_numpy(counts).to(given)
    total = found.sum(1, keepdim=True)
    return torch.where(total > 0, found / total.clamp(min=1), given)


def check(shares: Tensor, client: str) -> None:
    """
    Raises:
        UserError: an entry is negative or not finite, or all of them are 0.
    """
    if not bool(shares.isfinite().all()):
        wrong = "has an entry that is not finite"
    elif bool((shares < 0).any()):
        wrong = "has an entry below 0"
    elif not bool(shares.any()):
        wrong = "adds up to 0"
    else:
        return
    raise UserError(
        f'client "{client}" has no training rows, and the histogram of labels that it was given {wrong}: write into "{SHARES}" '
        "a number from 0 for each class, not all of them 0."
    )


def of_batch(pack: Pack, batch: Batch) -> Tensor:
    """[K, C] the shares of the classes in the batch's rows of each client."""
    found = pack.tensors[SHARES]
    rows = F.one_hot(batch.labels, found.shape[1]).to(found) * batch.mask.unsqueeze(-1)
    who = torch.arange(len(found), device=found.device) if batch.clients is None else batch.clients
    return found.index_copy(0, who, rows.sum(1) / batch.mask.sum(1, keepdim=True).clamp(min=1))
